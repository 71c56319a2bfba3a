"""Value transport by hand, against loops written from the paper's algorithm, and from acting to the loss."""

from dataclasses import replace

import pytest
import torch

from merlin.agents.acting import Acting
from merlin.errors import MerlinError
from merlin.experience import Reads
from merlin.memory import ContentMemory, Memory
from merlin.objectives.policy_gradient import ActorCriticConfig, advantages_and_returns, transported_of
from merlin.objectives.returns import n_step_returns
from merlin.objectives.value_transport import horizon_steps, read_events, transported_rewards
from merlin.runs.presets import preset
from merlin.runs.run import build_agent, build_environment
from merlin.states import map_state
from merlin.training.trainer import Trainer
from tests.agents.helpers import act, make_agent, random_observation

T, B, K = 40, 3, 2


def reads_of(strengths, weights, earlier=None):
    """Return the reads of one environment by one key."""
    strengths = torch.tensor(strengths, dtype=torch.float64).view(-1, 1, 1)
    earlier = torch.zeros_like(strengths) if earlier is None else torch.tensor(earlier).double().view(-1, 1, 1)
    return Reads(strengths, weights.double().view(len(strengths), 1, 1, -1), earlier)


def test_an_episode_by_hand():
    """The key is taken in step 1; in front of the door, steps 6 to 8, the agent remembers it, in 7 most sharply."""
    weights = torch.zeros(10, 10)
    weights[6, 1], weights[7, 1], weights[7, 0], weights[8, 1] = 0.5, 0.75, 0.125, 1.0
    weights[3, 0] = 1.0  # sharp too, but a read of three steps ago
    strengths = [0, 0, 0, 9, 0, 0, 3, 5, 4, 0]
    value = torch.arange(10, dtype=torch.float64).view(10, 1)  # V[t+1] of step 7 is 8
    is_first = torch.zeros(10, 1, dtype=torch.bool)
    rewards = transported_rewards(reads_of(strengths, weights), value + 1, is_first, 0.9, 2.0, min_steps=4)
    assert rewards[:, 0].tolist() == pytest.approx([0.9 * 0.125 * 8, 0.9 * 0.75 * 8, *[0] * 8])
    near = transported_rewards(reads_of(strengths, weights), value + 1, is_first, 0.9, 2.0, min_steps=2)
    assert near[0, 0] == pytest.approx(0.9 * (1.0 * 4 + 0.125 * 8)), "of step 3 the read counts as well"
    assert not transported_rewards(reads_of(strengths, weights), value + 1, is_first, 0.9, 5.0, 4).any(), "not above 5"


def test_a_read_of_before_the_window_is_an_event_that_credits_no_step():
    weights = torch.zeros(6, 6)
    weights[4, 3], weights[5, 0] = 0.4, 0.3
    value, is_first = torch.ones(6, 1, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.bool)

    def rewards(earlier):
        reads = reads_of([0, 0, 0, 0, 4, 3], weights, earlier=[0, 0, 0, 0, earlier, 0])
        return transported_rewards(reads, value, is_first, 1.0, 2.0, min_steps=2)[:, 0].tolist()

    assert rewards(0.5) == [0] * 6, "step 4 reads what is older than the window most sharply, and so hides step 5"
    assert rewards(0.3) == pytest.approx([0.3, 0, 0, 0, 0, 0]), "step 4 reads the step before, and is no event"


def test_events_by_hand():
    strengths = torch.tensor([3, 4, 4, 0, 2, 5, 6, 1], dtype=torch.float64).view(-1, 1, 1)
    is_first = torch.zeros(8, 1, dtype=torch.bool)
    assert read_events(strengths, is_first, 2.0).flatten().nonzero().flatten().tolist() == [1, 6]
    is_first[6] = True
    assert read_events(strengths, is_first, 2.0).flatten().nonzero().flatten().tolist() == [1, 5, 6]


def earlier_only(weights):
    """Return the weights [T, B, K, T] on words of steps before."""
    return weights.permute(1, 2, 0, 3).tril(-1).permute(2, 0, 1, 3)


def slowly(reads, following_value, is_first, alpha, threshold, min_steps):
    """Algorithm 2: splices of each key, then for each step and splice the reward if that is far enough back."""
    rewards = torch.zeros_like(following_value)
    for b in range(B):
        for k in range(K):
            splices, best = [], None
            for t in range(T + 1):
                if t < T:
                    old = max([float(reads.earlier[t, b, k]),
                               *(float(reads.weights[t, b, k, s]) for s in range(T) if t - s > min_steps)])  # fmt: skip
                    new = max([0.0, *(float(reads.weights[t, b, k, s]) for s in range(T) if t - s <= min_steps)])
                    crosses = float(reads.strengths[t, b, k]) > threshold and old > new
                if best is not None and (t == T or is_first[t, b] or not crosses):
                    splices.append(best)
                    best = None
                if t < T and crosses and (best is None or reads.strengths[t, b, k] > reads.strengths[best, b, k]):
                    best = t
            for s in range(T):
                for t in splices:
                    if s < t - min_steps:
                        rewards[s, b] += alpha * reads.weights[t, b, k, s] * following_value[t, b]
    return rewards


@pytest.mark.parametrize("min_steps", [0, 3, 11])
def test_against_loops(min_steps):
    generator = torch.Generator().manual_seed(min_steps)
    uniform = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = earlier_only(uniform(T, B, K, T).pow(8))
    is_first = uniform(T, B) < 0.1
    reads = Reads((10 * uniform(T, B, K)).round() / 2, weights, uniform(T, B, K))  # rounded: some are equal
    arguments = (reads, uniform(T, B), is_first, 0.7, 2.0, min_steps)
    rewards = transported_rewards(*arguments)
    assert rewards.count_nonzero() > T
    torch.testing.assert_close(rewards, slowly(*arguments))


@pytest.mark.parametrize("factor, steps", [(0.9, 10), (0.96, 25), (0.99, 100), (0.0, 1), (1.0, 25)])
def test_the_horizon_of_the_discount(factor, steps):
    assert horizon_steps(factor) == steps


@pytest.mark.parametrize("name", ["rl-mem", "merlin"])
@pytest.mark.parametrize("settings", [{"memory_size": 5}, {"memory_size": 30, "retroactive_discount": None},
                                      {"memory_size": 5, "top_k": 2}, {"mask_unwritten": False}])  # fmt: skip
def test_reads_are_those_of_the_steps_taken_one_by_one(name, settings):
    """Over a window, where slots are never rewritten, as after steps that say by slots where words are."""
    agent = make_agent(name, value_transport=0.9, **settings)
    is_first = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.08
    before = act(agent, torch.ones(7, B, dtype=torch.bool).cumsum(0) == 1)[2]
    torch.manual_seed(0)
    observations, reward = random_observation(T, B), torch.randn(T, B)
    acting = Acting(agent, before, T, torch.Generator().manual_seed(2))
    assert isinstance(agent.memory, ContentMemory)
    state, rows, generator = before, [], torch.Generator().manual_seed(2)
    for t in range(T):
        observation = {key: x[t] for key, x in observations.items()}
        output, state = agent.step(observation, state, is_first[t], reward[t], generator=generator)
        assert torch.equal(acting.step(observation, is_first[t], reward[t]), output.action)
        rows.append((output.read_weights, output.slots))
    columns = acting.columns()
    weights, slots = zip(*rows, strict=True)
    by_step, earlier = Memory.weights_by_step(agent.memory, list(weights), torch.stack(slots), is_first)
    torch.testing.assert_close(columns["reads"].weights, by_step, rtol=1e-4, atol=1e-5)
    has_begun = (is_first.cumsum(0) > 0).unsqueeze(-1)
    torch.testing.assert_close(columns["reads"].earlier, earlier.masked_fill(has_begun, 0), rtol=1e-4, atol=1e-5)
    for b in range(B):  # by hand: what a slot holds was written by the last step that chose it, if in this episode
        for t in range(T):
            begin = max([0, *(s for s in range(t + 1) if is_first[s, b])])
            for k in range(by_step.shape[2]):
                held = {int(slots[s][b]): s for s in range(begin, t)}
                expected = [0.0] * T
                for slot, s in held.items():
                    expected[s] = float(weights[t][b, k, slot])
                assert by_step[t, b, k].tolist() == pytest.approx(expected)
    assert (by_step.sum(-1) > 0.1).any()


@pytest.mark.parametrize("name", ["rl-mem", "merlin"])
def test_the_loss_is_that_of_the_rewards_with_what_is_transported(name):
    agent = make_agent(name)
    config = replace(agent.config, value_transport=0.9, transport_min_steps=3)
    unroll, *_ = act(agent, torch.rand(T, B) < 0.05)
    reads = Reads(4 * torch.rand(T, B, K), earlier_only(torch.rand(T, B, K, T)), torch.rand(T, B, K))
    unroll = unroll._replace(reads=reads)
    following = torch.where(unroll.discount > 0, unroll.next_value, 0.0)
    added = slowly(reads, following, unroll.is_first, 0.9, 2.0, 3)
    assert added.any() and (unroll.discount == 0).any()
    torch.testing.assert_close(transported_of(unroll, config), added)
    with_it = advantages_and_returns(unroll, config)
    torch.testing.assert_close(
        with_it, advantages_and_returns(unroll._replace(reward=unroll.reward + added), agent.config)
    )
    follow = (unroll.discount, unroll.next_value, unroll.is_end)
    torch.testing.assert_close(with_it[1], n_step_returns(unroll.reward + added, *follow))
    one = map_state(lambda x: x[:, :1], unroll._replace(observation=None))
    torch.testing.assert_close(transported_of(one, config), added[:, :1])


def test_rows_that_do_not_count_transport_nothing():
    unroll, *_ = act(make_agent("rl-mem"), torch.zeros(T, B, dtype=torch.bool))
    reads = Reads(3 + torch.rand(T, B, K), earlier_only(torch.rand(T, B, K, T)), torch.ones(T, B, K))
    config = ActorCriticConfig(value_transport=0.9, transport_min_steps=1)
    unroll = unroll._replace(reads=reads)
    assert transported_of(unroll, config).any()
    assert not transported_of(unroll._replace(is_valid=torch.zeros(T, B, dtype=torch.bool)), config).any()
    assert not transported_of(unroll, replace(config, value_transport=0.0)).any()


def test_a_step_that_wrote_nothing_takes_no_slot_from_the_one_that_did():
    """Of two slots the first is written in the first step, the second in the third, and all is read in the fourth."""
    slots, is_first = torch.tensor([[0], [-1], [1], [-1]]), torch.tensor([[True], [False], [False], [False]])
    weights = [torch.tensor([[[0.75, 0.25]]])] * 4
    by_step, earlier = Memory.weights_by_step(make_agent("rl-mem").memory, weights, slots, is_first)
    assert by_step[3].flatten().tolist() == [0.75, 0, 0.25, 0] and by_step[2].flatten().tolist() == [0.75, 0, 0, 0]
    assert earlier[1:3].flatten().tolist() == [0.25, 0.25], "of the slot that no step of the window has written yet"


def test_what_cannot_be_read_back_is_refused():
    agent = make_agent("rl-mem", value_transport=0.9)
    step = (
        {"card": torch.zeros(B, dtype=torch.int64), "place": torch.zeros(B, 3)},
        torch.ones(B).bool(),
        torch.zeros(B),
    )
    with pytest.raises(MerlinError, match="ContentMemory does not say where words go"):
        Memory.weights_by_step(agent.memory, [torch.zeros(B, K, 5)], None, torch.zeros(1, B).bool())
    perceive = agent.perceive
    agent.perceive = lambda *arguments: perceive(*arguments)._replace(read_strengths=None)
    with pytest.raises(MerlinError, match="RLMem gives no read_weights and read_strengths"):
        Acting(agent, agent.initial_state(B), 1).step(*step)


def trainer_of(agent, unroll_length=14, **model):
    config = preset(agent, "merlin/MemoryGame-v0", {"pairs": 3})
    training = replace(config.training, unroll_length=unroll_length, minibatches=1 if agent == "dreamer" else 2)
    config = replace(config, num_envs=4, training=training, model=replace(config.model, **model), device="cpu")
    environment = build_environment(config)
    return Trainer(build_agent(config, environment), environment, config.training, total_steps=1000, seed=1)


@pytest.mark.parametrize("agent", ["rl-mem", "merlin"])
def test_training_transports_and_tells(agent):
    small = {"value_transport": 0.9, "transport_read_strength": 0.1, "transport_min_steps": 2, "discount_factor": 0.9}
    trainer = trainer_of(agent, **small)
    metrics = [trainer.update()[0]["transported_reward"] for _ in range(2)]
    assert all(x.isfinite() and x != 0 for x in metrics)
    assert "transported_reward" not in trainer_of(agent).update()[0]


@pytest.mark.parametrize("agent", ["rl-mem", "merlin"])
def test_v_is_judged_by_returns_with_what_is_transported_as_it_learns_them(agent):
    small = {"value_transport": 0.9, "transport_read_strength": 0.1, "transport_min_steps": 2, "discount_factor": 0.9}
    trainer = trainer_of(agent, **small)
    (unroll, *_), episodes = trainer.rollout.collect(40, True)  # the first window: what ends in it began in it
    added = transported_of(unroll, trainer.agent.config)
    assert len(episodes.returns) and added.any()
    follow = (unroll.discount, torch.zeros_like(added), unroll.is_end)
    count = torch.flip(torch.flip(unroll.is_end, [0]).cumsum(0), [0]) > 0  # steps of episodes that ended
    learnt, earned = (n_step_returns(reward, *follow)[count] for reward in (unroll.reward + added, unroll.reward))
    error = (learnt - unroll.value[count]).square().sum()
    for sums, expected in zip(
        episodes.value_sums.sum(0)[1:], (error, learnt.sum(), learnt.square().sum()), strict=True
    ):
        assert float(sums) == pytest.approx(float(expected), rel=1e-4)
    assert float(earned.sum()) != pytest.approx(float(learnt.sum()), rel=1e-2)


@pytest.mark.parametrize(
    ("agent", "settings", "sentence"),
    [
        ("rl-lstm", {}, "whose every step writes one word to a memory, but RLLSTM is none"),
        ("ftw", {}, "whose every step writes one word to a memory, but FTW is none"),
        ("dreamer", {}, "whose every step writes one word to a memory, but Dreamer is none"),
        (
            "rl-mem",
            {"unroll_length": 11},
            "over more than 10 steps, so unroll_length must be at least 12, .* but is 11",
        ),
        ("merlin", {"transport_min_steps": 40}, "unroll_length must be at least 42"),
    ],
)
def test_where_nothing_could_be_transported_it_is_refused(agent, settings, sentence):
    with pytest.raises(MerlinError, match=sentence):
        trainer_of(agent, **{"value_transport": 0.9, "discount_factor": 0.9} | settings)
