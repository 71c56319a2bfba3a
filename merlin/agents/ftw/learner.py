"""How FTW learns: as other actor-critics from each window, with rewards predicted of sequences that are replayed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merlin.agents.ftw.auxiliary import SequenceReplay, sequences_of
from merlin.agents.learner import ActorCriticLearner, LearnerConfig, Window
from merlin.experience import Losses, Unroll


class FTWLearner(ActorCriticLearner):
    """Keeps sequences of observations before rewards and before none, and draws some for every update.

    Args:
        agent: An `FTW`.
        generator: Of what is drawn.
    """

    def __init__(self, agent: Any, config: LearnerConfig, generator: torch.Generator) -> None:
        super().__init__(agent, config, generator)
        self.replay = SequenceReplay(agent.config.replay_sequences)

    def update(self, window: Window, left: float) -> dict[str, Tensor]:
        """Keep a window's sequences, learn from the window, and return its losses."""
        if self.agent.reward_prediction is not None:
            self.replay.add(sequences_of(window.unroll))
        return super().update(window, left)

    def losses(self, unroll: Unroll, state: Any, entropy_scale: float, acting: Any) -> Losses:
        """Return the agent's loss of a window and of sequences drawn."""
        drawn = None
        if self.agent.reward_prediction is not None and len(self.replay):
            drawn = self.replay.sample(self.agent.config.reward_prediction_sequences, self.generator)
        return self.agent.losses(unroll, state, entropy_scale, acting, sequences=drawn)[0]

    def share_dict(self, directory: Path | None = None) -> dict[str, Any]:
        """Return the sequences that this process keeps."""
        return self.replay.state_dict()

    def load_share_dict(self, share: dict[str, Any], directory: Path | None = None) -> None:
        """Go on with the sequences that were kept."""
        if share:
            self.replay.load_state_dict(share, self.generator.device)
