"""MERLIN against a reference step by step, and the routes that its gradients may and may not take."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from merlin.agents import AGENTS
from merlin.agents.merlin import MerlinConfig
from merlin.agents.merlin.predictor import Inference, explained
from merlin.runs.presets import preset
from merlin.states import map_state
from tests import reference
from tests.agents.helpers import EVERY_KIND, SPACES, act, make_agent, random_observation, row, tensors
from tests.agents.test_border import observations

T, B = 12, 3
either = pytest.mark.parametrize("name", ["merlin", "merlin-categorical"])
every_merlin = pytest.mark.parametrize("name", ["merlin", "merlin-categorical", "merlin-policy-encoder"])


def no_resets() -> torch.Tensor:
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0] = True
    return is_first


def gradients(agent, loss) -> dict[str, torch.Tensor]:
    names, parameters = zip(*agent.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True))


def moved(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def set_config(agent, **values):
    agent.config = agent.predictor.config = replace(agent.config, **values)


def with_costs(agent, **costs):
    """Set configuration values, and switch off the losses that are not named."""
    kinds = ("image", "symbols", "vector", "category", "text", "action", "reward", "kl", "prior_kl")
    off = {f"{kind}_cost": 0.0 for kind in kinds}
    set_config(agent, **{**off, "return_cost": 0.0, "entropy_cost": 0.0, **costs})
    return agent


@pytest.mark.parametrize("seed", range(4))
def test_every_step_equals_the_reference(seed):
    """12 steps on 5 slots, so that the memory fills and slots are used again; but in two rows, where episodes start."""
    agent = make_agent("merlin", seed=seed).double()
    is_first = no_resets()
    is_first[4 + seed, 1] = is_first[2, 2] = is_first[9, 2] = True
    unroll, initial, _, outputs = act(agent, is_first, seed=seed)
    window, _ = agent.scan(unroll, initial, *agent.action_codes(unroll, initial))
    parameters = agent.policy_parameters(window)
    again = window._asdict() | {
        "log_prob": agent.actions.log_prob(parameters, unroll.action),
        "value": agent.value(window, parameters),
    }
    weights = {name.removeprefix("predictor."): x.detach().numpy() for name, x in agent.named_parameters()}
    encodings = agent.predictor.encoder(unroll.observation).detach().numpy()
    compared = 0
    for b in range(B):
        for t in range(T):
            if is_first[t, b]:
                expected = reference.Merlin(
                    weights, latent=6, hidden=7, layers=2, policy_hidden=9, slots=5, keys=2, policy_keys=3,
                    discount=agent.config.retroactive_discount, actions=4,
                )  # fmt: skip
            reward, noise = float(unroll.previous_reward[t, b]), unroll.extras.noise[t, b].numpy()
            step = expected.step(encodings[t, b], reward, noise, int(unroll.action[t, b]))
            for name, x in step.items():
                for where, found in (("step", getattr(outputs[t], name, None)), ("window", again.get(name))):
                    if found is not None:
                        ours = (found if where == "step" else found[t])[b].detach().numpy()
                        np.testing.assert_allclose(ours, x, atol=1e-10, err_msg=f"{name} of {where} {t}")
                        compared += 1
    assert compared == T * B * (5 + 7), "five of a step, seven of a window"


def advance(agent, latent, action, state):
    """Return the state after a step with this latent, its part that the policy sees, and the predictor's weights."""
    middle, _ = agent.recall(latent, state)
    predictor, weights, _ = agent.predictor.advance(latent, action, middle.predictor)
    return middle._replace(predictor=predictor), middle, weights


@either
def test_latent_of_a_step_is_in_no_read_of_that_step_and_in_those_of_the_next(name):
    agent = make_agent(name)
    state = agent.initial_state(B)
    reads = []
    for scale in (1.0, 100.0):
        after, middle, weights = advance(agent, torch.full((B, 6), scale), torch.zeros(B, 4), state)
        assert all((x == 0).all() for x in (after.predictor.read_words, middle.policy_read_words, weights))
        later, _, _ = advance(agent, torch.zeros(B, 6), torch.zeros(B, 4), after)
        reads.append(later.predictor.read_words)
    torch.testing.assert_close(reads[1][:, :6], 100 * reads[0][:, :6])  # one slot, read whole: its word, not its trace


@every_merlin
def test_policy_loss_reaches_the_policy_alone(name):
    agent = with_costs(make_agent(name), entropy_cost=0.3)
    unroll, initial, _, _ = act(agent, no_resets())
    for name, gradient in gradients(agent, agent.losses(unroll, initial)[0].total).items():
        assert moved(gradient) == name.startswith("policy."), name


@every_merlin
@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 2}, {"mask_unwritten": False}, {"retroactive_discount": None}, {"memory_size": 20}]
)
def test_policy_that_learns_alone_learns_what_it_learns_with_the_predictor(name, settings):
    agent = make_agent(name, **settings)
    is_first = torch.zeros(T, B, dtype=torch.bool)  # but in the middle of two rows
    is_first[3, 0] = is_first[6, 1] = True
    _, _, state, _ = act(agent, no_resets())  # whose memory is not empty when the window begins
    unroll, initial, _, _ = act(agent, is_first, state, seed=1)
    together, _ = agent.losses(unroll, initial)
    alone = agent.policy_losses(unroll, initial)
    expected, found = gradients(agent, together.total), gradients(agent, alone.total)
    for name, _ in agent.policy.named_parameters():
        torch.testing.assert_close(found[f"policy.{name}"], expected[f"policy.{name}"], rtol=1e-4, atol=1e-6)
    assert not any(moved(found[name]) for name in found if not name.startswith("policy."))
    assert alone.metrics["policy_kl_nats"].abs() < 1e-6


@either
def test_predictor_losses_never_reach_the_policy(name):
    agent = make_agent(name)
    unroll, initial, _, _ = act(agent, no_resets())
    set_config(agent, entropy_cost=0.0)
    constant = unroll._replace(reward=torch.zeros(T, B), value=torch.zeros(T, B), next_value=torch.zeros(T, B))
    grads = gradients(agent, agent.losses(constant, initial)[0].total)  # no advantage, no entropy: no policy loss
    assert not any(moved(gradient) for name, gradient in grads.items() if name.startswith("policy."))
    assert all(moved(gradient) for name, gradient in grads.items() if not name.startswith("policy."))


@either
@pytest.mark.parametrize("allowed", [True, False])
def test_return_loss_reaches_the_encoder_unless_switched_off(name, allowed):
    agent = with_costs(make_agent(name), return_cost=1.0, return_gradient_to_latent=allowed)
    unroll, initial, _, _ = act(agent, no_resets())
    grads = gradients(agent, agent.losses(unroll, initial)[0].total)
    assert moved(grads["predictor.value_head.0.weight"]) and moved(grads["predictor.advantage_head.0.weight"])
    assert moved(grads["predictor.posterior_input.weight"]) == allowed


@either
def test_policy_gradient_reaches_the_latent_only_when_let(name):
    agent = with_costs(make_agent(name), policy_gradient_to_latent=True)
    unroll, initial, _, _ = act(agent, no_resets())
    assert moved(gradients(agent, agent.losses(unroll, initial)[0].total)["predictor.posterior_input.weight"])


def test_a_policy_that_makes_nothing_of_its_own_encoding_is_the_papers():
    """Its weights from latents and words are the paper's, divided by the scales at which these enter; others are 0."""
    paper = make_agent("merlin")
    agent = make_agent("merlin", policy_encoder=True, policy_latent_scale=0.5, policy_read_scale=0.25)
    latent, words, hidden = 6, paper.policy.reader.num_read_keys * paper.memory.slot_size, 9
    ours, its = agent.state_dict(), paper.state_dict()
    for name, widths in {
        "policy.lstm.cells.0.weight_ih": [(latent, 0.5), (words, 0.25)],
        "policy.head.0.weight": [(latent, 0.5), (hidden, 1), (words, 0.25)],
    }.items():
        parts = [x / scale for x, (_, scale) in zip(its[name].split([x for x, _ in widths], 1), widths, strict=True)]
        its[name] = torch.cat([*parts, torch.zeros(len(ours[name]), agent.policy.encoding_size)], 1)
    agent.load_state_dict(its)
    (expected, _, state, _), (found, _, other, _) = act(paper, no_resets()), act(agent, no_resets())
    torch.testing.assert_close((found.log_prob, found.value), (expected.log_prob, expected.value))
    for x, y in zip(tensors(other), tensors(state), strict=True):
        torch.testing.assert_close(x, y)


def test_policy_and_its_own_value_teach_its_own_encoder_and_nothing_of_the_predictor():
    agent = make_agent("merlin-policy-encoder", spaces=EVERY_KIND)
    seen = {name: torch.from_numpy(x) for name, x in observations(0).items()}
    code = agent.encode(seen, torch.zeros(3, 4), torch.zeros(3))
    activations = agent.perceive(code, agent.initial_state(3)).activations
    for output in agent.heads(activations, seen):
        for name, gradient in gradients(agent, output.square().sum()).items():
            assert not (moved(gradient) and name.startswith("predictor.")), name
            assert moved(gradient) or not name.startswith("policy.encoder."), name


def test_in_imagination_the_policy_sees_what_is_decoded():
    agent = make_agent("merlin-policy-encoder", spaces=EVERY_KIND)
    state = map_state(lambda x: x + 1 if x.is_floating_point() else x, agent.initial_state(B))
    with torch.no_grad():
        activations = agent.perceive(None, state).activations
        seen = agent.policy.encoder(agent.reconstruct(activations.latent))
        reward = agent.predictor.reward_decoder(activations.latent)
        expected = torch.cat([seen, state.previous_action, reward], -1)
    torch.testing.assert_close(activations.policy_encoding, expected)


@either
def test_no_gradient_reaches_a_latent_through_a_memory_slot(name):
    agent = make_agent(name)
    latent = torch.randn(B, 6, requires_grad=True)
    state = agent.initial_state(B)
    after, _, _ = advance(agent, latent, torch.zeros(B, 4), state)
    assert not after.predictor.memory.memory.requires_grad and not after.predictor.memory.usage.requires_grad


def test_action_value_gradient_stops_at_the_state_value():
    """R^ = sg(V) + A: V learns from its own error alone."""
    agent = with_costs(make_agent("merlin"), return_cost=1.0, return_gradient_to_latent=False)
    unroll, initial, _, _ = act(agent, no_resets())
    agent.losses(unroll, initial)[0].total.backward()
    before = agent.predictor.value_head[2].weight.grad.clone()
    with torch.no_grad():
        agent.predictor.advantage_head[2].bias.add_(5.0)
    agent.zero_grad()
    agent.losses(unroll, initial)[0].total.backward()
    torch.testing.assert_close(agent.predictor.value_head[2].weight.grad, before)


def test_kl_cost_follows_the_entropy_of_the_observations():
    agent = make_agent("merlin")
    unroll, initial, _, _ = act(agent, no_resets())
    agent.losses(unroll, initial)
    assert 0 < agent.predictor.observation_nats < 4, "measured while training"
    agent.eval()
    set_config(agent, kl_reference_nats=8500.0)
    for nats, cost in ((0.0, 5e-4), (850.0, 0.1), (1e5, 1.0)):
        agent.predictor.observation_nats.fill_(nats)
        assert agent.losses(unroll, initial)[0].metrics["kl_cost"] == pytest.approx(cost)
    set_config(agent, kl_reference_nats=85_000.0)
    agent.predictor.observation_nats.fill_(0.0)
    assert agent.losses(unroll, initial)[0].metrics["kl_cost"] == pytest.approx(5e-5)
    set_config(agent, kl_cost=0.25)
    assert agent.losses(unroll, initial)[0].metrics["kl_cost"] == 0.25


@pytest.mark.parametrize("latent_size", [32, 96])
def test_policy_that_starts_associative_reads_what_is_like_the_present(latent_size):
    """Latents that resemble one of those in memory, half noise: the alike one is read most, by every key."""
    config = MerlinConfig(
        latent_size=latent_size, policy_hidden_size=96, memory_size=8, policy_num_read_keys=3,
        policy_read_strength=10.0, policy_associative_start=True,
    )  # fmt: skip
    agent = AGENTS["merlin"].agent_class(SPACES, spaces.Discrete(4), config)
    latents, nothing = torch.randn(9, 64, latent_size), torch.zeros(64, 4)
    latents[8] = latents[3] + latents[8]
    state = agent.initial_state(64)
    for latent in latents[:8]:
        state, _, _ = advance(agent, latent, nothing, state)
    _, weights = agent.recall(latents[8], state)
    assert (weights.argmax(-1) == 3).float().mean() > 0.9


@either
def test_free_nats_cost_nothing(name):
    agent = with_costs(make_agent(name), kl_cost=1.0, free_nats=1e4)
    unroll, initial, _, _ = act(agent, no_resets())
    assert not moved(gradients(agent, agent.losses(unroll, initial)[0].total)["predictor.prior_network.0.weight"])


@pytest.mark.usefixtures("on_a_command_line")
def test_a_collapsed_posterior_is_told_with_its_remedy():
    agent = make_agent("merlin")
    fine = {"kl_nats": 8.0, "observation_nats": 3.0, "observation_explained": 0.97, "kl_cost": 0.01}
    collapsed = fine | {"kl_nats": 0.001, "observation_explained": 0.02}
    assert agent.warnings(fine) == {} and agent.warnings(fine | {"kl_nats": 0.001}) == {}
    (sentence,) = agent.warnings(collapsed).values()
    assert "collapsed" in sentence and "--set model.kl_cost=0.001" in sentence


def test_of_a_high_kl_the_entries_that_are_not_decoded_are_told():
    """Long before anything is learnt KL may be of hundreds of nats: no posterior has collapsed then."""
    agent = make_agent("merlin")
    seen = {"kl_nats": 187.0, "observation_nats": 5000.0, "observation_explained": 0.01, "kl_cost": 0.01}
    seen |= {f"{name}_explained": 0.9 for name in SPACES}
    assert agent.warnings(seen) == {}
    name, *others = SPACES
    (told,) = agent.warnings(seen | {f"{name}_explained": -3.0} | {f"{x}_explained": math.nan for x in others}).items()
    assert (
        told[0] == f"{name}_explained"
        and f"entry {name!r} is not decoded (0% explained, at a KL of 187 nats" in told[1]
    )
    silent = make_agent(
        "merlin", **{f"{kind}_cost": 0.0 for kind in ("image", "symbols", "vector", "category", "text")}
    )
    assert silent.warnings(seen | {f"{name}_explained": 0.0 for name in SPACES}) == {}


def test_explained_is_0_for_the_best_constant_guess_and_1_for_the_truth():
    worth = torch.tensor(0.7, dtype=torch.float64)
    assert explained(torch.tensor(0.7), worth).item() == pytest.approx(0, abs=1e-6)
    assert explained(torch.tensor(0.0), worth) == 1 and explained(torch.tensor(1.4), worth).item() == pytest.approx(-1)
    assert explained(torch.tensor(0.1), 0 * worth).isnan(), "of what never changes there is nothing to explain"


@either
def test_every_loss_can_be_switched_off_by_its_cost(name):
    unroll, initial, _, _ = act(make_agent(name), no_resets())
    everything = make_agent(name).losses(unroll, initial)[0].total.item()
    for cost in ("category_cost", "vector_cost", "action_cost", "reward_cost", "return_cost", "kl_cost"):
        assert make_agent(name, **{cost: 0.0}).losses(unroll, initial)[0].total.item() != everything, cost


@either
def test_reconstruction_has_the_form_of_the_observation(name):
    agent = make_agent(name)
    decoded = agent.reconstruct(torch.randn(B, 6))
    for name, x in random_observation(B).items():
        assert decoded[name].shape == x.shape and decoded[name].dtype == x.dtype
    assert decoded.keys() == SPACES.keys()


@either
def test_posterior_equals_prior_when_the_correction_is_zero(name):
    agent = make_agent(name)
    with torch.no_grad():
        for parameter in agent.predictor.posterior_network[1][-1].parameters():
            parameter.zero_()
    state = map_state(lambda x: x + 1 if x.is_floating_point() else x, agent.initial_state(B))
    noise = agent.predictor.latents.draw_noise(B, torch.zeros(1))
    thought = agent.predictor.perceive(
        torch.randn(B, agent.predictor.posterior_input.out_features), noise, state.predictor
    )
    assert thought.prior.any() and torch.equal(thought.prior, thought.posterior)


def test_first_latents_are_not_all_noise_at_the_default_scale():
    """The spread of the posterior's means over observations, against its own deviation."""
    signals = []
    for scale in (1.0, preset().model.posterior_scale):
        agent = AGENTS["merlin"].agent_class(SPACES, spaces.Discrete(4), replace(preset().model, posterior_scale=scale))
        encoded = agent.predictor.encode(random_observation(256), torch.zeros(256, 4), torch.zeros(256))
        state = agent.predictor.initial_state(256)
        inference = agent.predictor.perceive(encoded, torch.zeros(256, agent.config.latent_size), state)
        posterior = agent.predictor.latents.from_parameters(inference.posterior)
        signals.append((posterior.mean.std(0) / torch.exp(posterior.log_variance / 2).mean(0)).mean().item())
    assert signals[0] < 0.1 < 0.3 < signals[1]


def test_every_entry_counts_the_same_at_first_when_started_with_a_gain():
    """Of what enters the posterior's first layer, a wide grid, a category, a vector, an action and a reward."""
    entries = {"grid": spaces.MultiDiscrete(np.full((7, 7, 3), 6)), **SPACES}
    agent = AGENTS["merlin"].agent_class(entries, spaces.Discrete(4), replace(preset().model, hidden_gain=1.5))
    encoder, weight = agent.predictor.encoder, agent.predictor.posterior_input.weight
    shares, start = [], 0
    for width, square_length in [*encoder.parts, (4, 1), (1, 1)]:
        shares.append(weight[:, start : start + width].square().mean().item() * square_length)
        start += width
    assert start == weight.shape[1] and len(shares) == 5
    assert sum(shares) == pytest.approx(1.5**2, rel=0.3) and max(shares) < 2.5 * min(shares)
    observation = {"grid": torch.randint(6, (64, 7, 7, 3)), **random_observation(64)}
    encodings = encoder(observation).split([width for width, _ in encoder.parts], -1)
    for (_, square_length), encoding in zip(encoder.parts, encodings, strict=True):
        assert 0.2 < encoding.square().sum(-1).mean() / square_length <= 1


@either
def test_what_is_expected_is_decoded_from_the_prior(name):
    """The loss grows by the nats of the observations under what the prior's mean decodes to, and by nothing else."""
    agent = with_costs(make_agent(name), category_cost=1.0, vector_cost=1.0)
    unroll, state, _, _ = act(agent, no_resets())
    without = agent.losses(unroll, state)[0]
    set_config(agent, expectation_cost=0.5)
    with_it = agent.losses(unroll, state)[0]
    predictor, decoder = agent.predictor, agent.predictor.decoder
    expected, past, action = 0.0, state.predictor, torch.zeros(B, 4)
    for t in range(T):
        observation = row(unroll, t)
        nats = decoder.nats(decoder(predictor.latents.from_parameters(predictor.prior(past)).mean), observation)
        expected += float(sum(x.mean() for x in nats.values()).detach()) / T
        code = predictor.encode(observation, action, unroll.previous_reward[t])
        latent = predictor.perceive(code, unroll.extras.noise[t], past).latent
        action = agent.actions.encode(unroll.action[t])
        past, _, _ = predictor.advance(latent, action, past)
    torch.testing.assert_close(with_it.total - without.total, torch.tensor(0.5 * expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_it.metrics["expected_nats"], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@either
def test_metrics_of_the_predictor_alone_hold_no_graph(name):
    """Who keeps them would keep every window."""
    agent = make_agent(name)
    unroll, state, _, _ = act(agent, no_resets())
    actions, previous_actions = agent.action_codes(unroll, state)
    seen, _ = agent.scan(unroll, state, actions, previous_actions)
    inferences, policy = Inference(seen.prior, seen.posterior, seen.latent), agent.policy_parameters(seen)
    loss, _, metrics = agent.predictor.loss(inferences, unroll, policy, actions, previous_actions, unroll.reward)
    assert loss.requires_grad and not any(x.requires_grad for x in metrics.values())


@either
def test_expecting_teaches_the_prior_what_it_is_made_from_and_no_policy(name):
    agent = with_costs(make_agent(name), category_cost=1.0, vector_cost=1.0, expectation_cost=1.0)
    unroll, state, _, _ = act(agent, no_resets())
    found = gradients(agent, agent.losses(unroll, state)[0].total)
    set_config(agent, expectation_cost=0.0)
    before = gradients(agent, agent.losses(unroll, state)[0].total)
    for name in found:
        if name.startswith("policy"):
            torch.testing.assert_close(found[name], before[name])
        elif any(part in name for part in ("prior_network", "lstm", "reader", "decoder.entries")):
            assert not torch.allclose(found[name], before[name]), name


@either
def test_imagined_latents_are_samples_of_the_prior_that_are_acted_on_and_remembered(name):
    agent = make_agent(name)
    state = act(agent, no_resets())[2]
    before = [x.clone() for x in tensors(state)]
    latents = agent.imagine(state, 4, torch.Generator().manual_seed(3))
    assert all(torch.equal(x, y) for x, y in zip(before, tensors(state), strict=True))
    generator = torch.Generator().manual_seed(3)
    noise = lambda generator: agent.predictor.latents.draw_noise(B, latents, generator)  # noqa: E731
    with torch.no_grad():
        for latent in latents:
            prior = agent.predictor.latents.from_parameters(agent.predictor.prior(state.predictor))
            torch.testing.assert_close(latent, prior.sample(noise(generator)))
            middle, _ = agent.recall(latent, state)
            policy = torch.cat([latent, middle.policy_hidden, middle.policy_read_words], -1)
            action = agent.actions.encode(agent.actions.sample(agent.policy.head(policy), generator))
            state = advance(agent, latent, action, state)[0]
        assert latents.std(0).any()
        start, done = act(agent, no_resets())[2], torch.eye(action.shape[-1])[torch.tensor([[0], [1]]).expand(2, B)]
        generator = torch.Generator().manual_seed(4)
        given = agent.imagine(start, 3, torch.Generator().manual_seed(4), done)
        for latent, code in zip(given[:2], done, strict=True):
            prior = agent.predictor.latents.from_parameters(agent.predictor.prior(start.predictor))
            torch.testing.assert_close(latent, prior.sample(noise(generator)))
            start = advance(agent, latent, code, start)[0]
        prior = agent.predictor.latents.from_parameters(agent.predictor.prior(start.predictor))
        torch.testing.assert_close(given[2], prior.sample(noise(generator)))
