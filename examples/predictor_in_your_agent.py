"""MERLIN's predictor in somebody else's actor-critic: it makes latents and memories of observations to act on.
The policy and its loss are an advantage actor-critic of one's own. With 1 of SLOTS only the LSTM remembers.

It takes half a minute of a core: python examples/predictor_in_your_agent.py [UPDATES] [SEED] [SLOTS]
"""

import argparse
import inspect

import torch

from merlin import Unroll, make_environment
from merlin.agents.merlin.predictor import Predictor, PredictorConfig
from merlin.networks.actions import make_action_distribution
from merlin.networks.heads import mlp
from merlin.objectives.returns import n_step_returns
from merlin.states import map_state, reset_state, stack_states

ENVS, STEPS, LATENT, DISCOUNT = 64, 16, 16, 0.96


def main(updates: int = 300, seed: int = 0, slots: int = 16) -> float:
    torch.manual_seed(seed)
    env = make_environment("merlin/TMaze-v0", ENVS, env_kwargs={"length": 3})
    actions = make_action_distribution(env.action_space)
    predictor = Predictor(env.spaces, actions, PredictorConfig(latent_size=LATENT, hidden_size=32, memory_size=slots))
    policy = mlp(LATENT + 3 * 2 * LATENT, (64,), actions.num_parameters)
    optimizer = torch.optim.Adam([*predictor.parameters(), *policy.parameters()], lr=3e-3)
    state, now = predictor.initial_state(ENVS), env.reset(seed=seed)
    for update in range(updates):
        rows, inferences, state = [], [], map_state(torch.Tensor.detach, state)
        for _ in range(STEPS):
            state, reward = reset_state(state, now.is_first), now.reward.masked_fill(now.is_first, 0)
            previous, code = state.action, predictor.encode(now.observation, state.action, reward)
            inference = predictor.perceive(code, torch.randn(ENVS, LATENT), state)
            logits = policy(torch.cat([inference.latent, state.read_words], -1).detach())
            action = actions.sample(logits)
            taken, value = actions.encode(action), predictor.value(inference.latent, logits).detach()
            after, (state, *_) = env.step(action), predictor.advance(inference.latent, taken, state)
            rows.append((now.observation["observation"], now.is_first, reward, action, actions.log_prob(logits, action),
                         after.reward, DISCOUNT * ~after.terminated, value, after.terminated | after.truncated,
                         ~now.is_last, logits, taken, previous, after.success))  # fmt: skip
            inferences, now = [*inferences, inference], after
        columns = tuple(map(torch.stack, zip(*rows, strict=True)))
        seen, is_first, previous_reward, action, log_prob, reward, discount, value, is_end, is_valid = columns[:10]
        next_value = torch.cat([value[1:], value[-1:]])  # rough at the window's edge
        unroll = Unroll({"observation": seen}, is_first, previous_reward, action, log_prob.detach(), reward, discount,
                        value, next_value, is_end, is_valid)  # fmt: skip
        returns = n_step_returns(reward, discount, next_value, is_end)
        prediction, _, metrics = predictor.loss(stack_states(inferences), unroll, *columns[10:13], returns)
        optimizer.zero_grad()
        (prediction - (returns - value) * log_prob - 0.02 * actions.entropy(columns[10])).mean().backward()
        optimizer.step()
        if update % 50 == 0 or update == updates - 1:
            print(f"update {update:4d}  KL {metrics['kl_nats']:.1f}  success {columns[13].nanmean():.2f}; chance 0.50")
    return columns[13].nanmean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
