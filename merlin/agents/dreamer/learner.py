"""How Dreamer learns: from replayed windows, as many rows for each that was experienced as the replay's ratio says."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlin import distributed
from merlin.agents.learner import (
    Learner,
    LearnerConfig,
    Window,
    base_rates,
    groups_of,
    load_optimizer,
    scheduled,
)
from merlin.errors import MerlinError
from merlin.experience import Losses, Unroll
from merlin.states import map_state
from merlin.training.replay import Replay


class DreamerLearner(Learner):
    """Keeps every window, and updates model, policy and value from windows that it draws.

    Args:
        agent: A `Dreamer`.
        generator: Of which windows are drawn, of latents and of what is imagined.

    Raises:
        MerlinError: A setting of learning on the policy's own windows is set, or the replay is smaller than what an
            update learns from.
    """

    def __init__(self, agent: Any, config: LearnerConfig, generator: torch.Generator) -> None:
        for name in ("passes", "policy_passes", "minibatches"):
            if (value := getattr(config, name)) != 1:
                raise MerlinError(
                    f"An agent that learns from a replay has no training.{name}, which must be 1, but {value} came: "
                    f"set model.replay_ratio or model.replay_windows."
                )
        self.agent, self.config, self.generator = agent, config, generator
        self.groups = groups_of(agent)
        self.base_rates = base_rates(config, self.groups)
        self.optimizers = {
            name: torch.optim.AdamW(
                parameters,
                lr=self.base_rates[name],
                eps=config.adam_epsilon,
                fused=True,
            )
            for name, parameters in self.groups.items()
        }
        self.replay: Replay | None = None
        self.rows = self.updates = 0
        self.owed = 0.0

    def update(self, window: Window, left: float) -> dict[str, Tensor]:
        """Keep a window, learn from as many as are owed, and return the losses' means; none before the first update."""
        agent, settings = self.agent, self.agent.config
        length, environments = window.unroll.is_first.shape
        if self.replay is None:
            self.replay = self._new_replay(length)
        self.replay.add(window.unroll, window.state)
        agent.update_scales(window.unroll)
        self.rows += length * environments
        if self.rows * distributed.world_size() < settings.prefill_steps:
            return {}
        self.owed += length * environments * settings.replay_ratio / (length * settings.replay_windows)
        for name, optimizer in self.optimizers.items():
            rate = self.base_rates[name] * scheduled(self.config.final_learning_rate_fraction, left)
            optimizer.param_groups[0] |= {"lr": rate, "weight_decay": settings.weight_decay / rate}
        entropy_scale = scheduled(self.config.final_entropy_fraction, left)
        found: list[dict[str, Tensor]] = []
        while self.owed >= 1:
            self.owed -= 1
            found.append(self._learn(*self._draw(), entropy_scale))
        return {name: torch.stack([x[name] for x in found]).mean(0) for name in (found[0] if found else ())}

    def state_dict(self) -> dict[str, Any]:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return optimizers | {"rows": self.rows, "updates": self.updates, "owed": self.owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state[name])
        self.rows, self.updates, self.owed = state["rows"], state["updates"], state["owed"]

    def share_dict(self, directory: Path | None = None) -> dict[str, Any]:
        """Return the replay of this process, with the length of its windows."""
        if self.replay is None:
            return {}
        return {"replay": self.replay.state_dict(directory), "length": self.replay.length}

    def load_share_dict(self, share: dict[str, Any], directory: Path | None = None) -> None:
        if share:
            length = getattr(self.config, "unroll_length", share["length"])
            if length != share["length"]:
                raise MerlinError(
                    f"A replay goes on with windows as long as those that it holds, of {share['length']} rows, but "
                    f"training.unroll_length is {length}: resume with {share['length']}."
                )
            self.replay = self._new_replay(length)
            like = self.agent.initial_state(1)
            self.replay.load_state_dict(share["replay"], like, self.generator.device, directory)

    def _new_replay(self, length: int) -> Replay:
        settings = self.agent.config
        capacity = settings.replay_rows // length
        if capacity < settings.replay_windows:
            raise MerlinError(
                f"A replay must hold what an update learns from, {settings.replay_windows} windows of {length} rows, "
                f"but model.replay_rows is {settings.replay_rows}: raise it, or lower model.replay_windows."
            )
        return Replay(capacity, length)

    def _draw(self) -> tuple[Unroll, Any]:
        """Return replayed windows with fresh noise for their latents, and the states that they start from."""
        assert self.replay is not None
        settings = self.agent.config
        unroll, state = self.replay.sample(settings.replay_windows, self.generator)
        if settings.replay_state == "zero":
            state = map_state(torch.zeros_like, state)
            first = torch.zeros_like(unroll.is_first)
            first[0] = True
            unroll = unroll._replace(
                is_first=unroll.is_first | first, previous_reward=unroll.previous_reward.masked_fill(first, 0)
            )
        return self.agent.with_noise(unroll, self.generator), state

    def _learn(self, unroll: Unroll, state: Any, entropy_scale: float) -> dict[str, Tensor]:
        """Make one update of model, policy and value, and return its losses and the norms of its gradients."""
        agent = self.agent
        actions, previous_actions = agent.action_codes(unroll, state)
        activations, _ = agent.scan(unroll, state, actions, previous_actions)
        losses = agent.loss(activations, unroll, actions, previous_actions, entropy_scale, self.generator)
        return losses.metrics | self._descend(losses)

    def _descend(self, losses: Losses) -> dict[str, Tensor]:
        """Let all optimisers step down the loss, and return it and the norms of its gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        distributed.average_gradients(parameter for group in self.groups.values() for parameter in group)
        limit = self.config.max_grad_norm or math.inf
        norms = {name: torch.nn.utils.clip_grad_norm_(group, limit) for name, group in self.groups.items()}
        if not torch.stack([*norms.values()]).isfinite().all():
            raise FloatingPointError("gradients must be finite")
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.updates += 1
        if self.updates % self.agent.config.target_updates == 0:
            self.agent.update_target()
        return {"loss": losses.total.detach()} | {f"{name}_grad_norm": norm for name, norm in norms.items()}
