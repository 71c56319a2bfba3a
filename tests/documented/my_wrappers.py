"""Wrappers by the names that pages give to those of a reader."""

import gymnasium


def stacked(env):
    return gymnasium.wrappers.FrameStackObservation(env, 4)


def position_and_angle(env):
    space = gymnasium.spaces.Box(-10, 10, (2,))
    return gymnasium.wrappers.TransformObservation(env, lambda observation: observation[::2], space)
