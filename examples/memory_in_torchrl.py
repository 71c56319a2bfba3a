"""A task and the memory in TorchRL: its PPO and its collector, `MemoryLSTM` on TensorDicts. pip install torchrl

The task: see a cue, walk a corridor of LENGTH, turn to the cued side. Without memory 0.50 of episodes succeed.
With 1 of SLOTS, 32 unless told, it remembers the step before alone, besides what its LSTM holds.

It takes a minute of a core: python examples/memory_in_torchrl.py [STEPS] [LENGTH] [SEED] [SLOTS]
"""

import argparse
import inspect

import gymnasium
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import Compose, GymWrapper, InitTracker, TensorDictPrimer, TransformedEnv, step_mdp
from torchrl.modules import ActorValueOperator, OneHotCategorical, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from merlin.memory import MemoryLSTM  # which registers the tasks too

ENVS, WINDOW, EPOCHS, PARTS, HIDDEN = 64, 16, 2, 4, 64
DISCOUNT, LAMBDA, RATE = 0.98, 0.95, 7e-4


class Memory(nn.Module):
    """The memory, which takes a step [B, I] where the agent acts and a window [B, T, I] where it learns."""

    def __init__(self, inputs: int, width: int, slots: int) -> None:
        super().__init__()
        self.core = MemoryLSTM(inputs, width, memory_size=slots, batch_first=True)

    def forward(self, x, state, is_first):
        """Return outputs, and the state after the last of them beside each, as a TensorDict wants it."""
        if x.ndim == 2:
            output, after = self.core(x.unsqueeze(1), state.unsqueeze(0), is_first)
            return output[:, 0], after[0]
        output, after = self.core(x, state[:, 0].unsqueeze(0), is_first.squeeze(-1))
        return output, after[0].unsqueeze(1).expand_as(state)


def main(steps: int = 150_000, length: int = 10, seed: int = 1, slots: int = 32) -> float:
    torch.manual_seed(seed)
    memory = Memory(HIDDEN, HIDDEN, slots)
    made = gymnasium.make_vec(
        "merlin/TMaze-v0", ENVS, vectorization_mode="vector_entry_point", arrays="numpy", length=length
    )
    primer = TensorDictPrimer({"memory": Unbounded((memory.core.state_size,))}, default_value=0.0, expand_specs=True)
    env = TransformedEnv(GymWrapper(made), Compose(InitTracker(), primer))
    env.set_seed(seed)
    encoder = nn.Sequential(nn.Linear(env.observation_spec["observation"].shape[-1], HIDDEN), nn.Tanh())
    body = TensorDictSequential(
        TensorDictModule(encoder, ["observation"], ["code"]),
        TensorDictModule(memory, ["code", "memory", "is_init"], ["features", ("next", "memory")]),
    )
    head = TensorDictModule(nn.Linear(HIDDEN, env.action_spec.shape[-1]), ["features"], ["logits"])
    value = TensorDictModule(nn.Linear(HIDDEN, 1), ["features"], ["state_value"])
    agent = ActorValueOperator(
        body,
        ProbabilisticActor(head, ["logits"], distribution_class=OneHotCategorical, return_log_prob=True),
        value,
    )
    loss = ClipPPOLoss(agent.get_policy_operator(), agent.get_value_operator(), entropy_coeff=0.03, critic_coeff=0.5)
    optimizer = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
    collector = Collector(env, agent, frames_per_batch=ENVS * WINDOW, total_frames=steps)
    recent = []
    for data in collector:  # [ENVS, WINDOW]
        with torch.no_grad():
            after = agent(step_mdp(data[:, -1], exclude_action=True))["state_value"]
        values, following = data["state_value"], data["next"]
        next_values = torch.cat([values[:, 1:], after.unsqueeze(1)], 1)  # no matter where an episode ends
        data["advantage"], data["value_target"] = generalized_advantage_estimate(
            DISCOUNT, LAMBDA, values, next_values, following["reward"], following["done"], following["terminated"]
        )
        recent = (recent + (following["reward"][following["done"]] > 0).tolist())[-1000:]
        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVS).chunk(PARTS):
                losses = loss(data[rows])
                optimizer.zero_grad()
                sum(x for name, x in losses.items() if name.startswith("loss_")).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    success = sum(float(x) for x in recent) / max(1, len(recent))
    print(f"success {success:.2f} of the last {len(recent)} episodes; without memory 0.50")
    collector.shutdown()
    return success


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, argument in inspect.signature(main).parameters.items():
        parser.add_argument(name, nargs="?", type=type(argument.default), default=argument.default)
    main(**vars(parser.parse_args()))
