"""Partially observable tasks that need memory, as batches of torch tensors and as single numpy environments.

    import merlin                                                                      # registers the ids of `TASKS`

    gymnasium.make_vec("merlin/MemoryGame-v0", num_envs=64, pairs=4, device="cpu")     # batch of torch tensors
    gymnasium.make("merlin/MemoryGame-v0", pairs=4)                                    # one numpy environment

Without the import, `merlin:merlin/MemoryGame-v0` names the module that registers the id. Torch is imported when a task
is made, gymnasium when somebody asks for it.

`import tasks` gives this package too, where nothing else has that name: in a checkout, and once `merlin` was imported.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

__all__ = ["TASKS", "Task", "register", "scores"]

REGISTRATION = "gymnasium.envs.registration"


class Task(NamedTuple):
    module: str  # of `vector_name` and `single_name`
    vector_name: str
    single_name: str
    summary: str


TASKS = {
    "merlin/MemoryGame-v0": Task(
        "merlin.tasks.paper.memory_game",
        "MemoryGame",
        "SingleMemoryGame",
        "find the pairs among 2·pairs face-down cards in 3·pairs flips; one card is seen at a time",
    ),
    "merlin/TMaze-v0": Task(
        "merlin.tasks.classic.tmaze",
        "TMaze",
        "SingleTMaze",
        "see a cue at the start, walk a corridor of `length` steps, turn to the cued side at the junction",
    ),
    "merlin/Memory-v0": Task(
        "merlin.tasks.minigrid_tasks.memory",
        "Hallway",
        "SingleHallway",
        "MiniGrid's Memory: see an object, walk a hallway, go to the same object at its end",
    ),
    "merlin/RepeatPrevious-v0": Task(
        "merlin.tasks.classic.repeat",
        "RepeatPrevious",
        "SingleRepeatPrevious",
        "name the symbol that was shown `k` steps ago, at every step",
    ),
    "merlin/Playback-v0": Task(
        "merlin.tasks.classic.playback",
        "Playback",
        "SinglePlayback",
        "see a sequence of `length` symbols, then name them in the same order",
    ),
    "merlin/VisuomotorMapping-v0": Task(
        "merlin.tasks.paper.visuomotor",
        "VisuomotorMapping",
        "SingleVisuomotorMapping",
        "learn from reward which response belongs to each picture; the mapping is new in every episode",
    ),
    "merlin/RewardValuation-v0": Task(
        "merlin.tasks.paper.reward_valuation",
        "RewardValuation",
        "SingleRewardValuation",
        "taste balls to learn which colours are good in this episode, then eat only those",
    ),
    "merlin/TransientInstruction-v0": Task(
        "merlin.tasks.paper.transient_instruction",
        "TransientInstruction",
        "SingleTransientInstruction",
        "read an instruction that is gone a step later, then go to the object that it named",
    ),
    "merlin/Maze-v0": Task(
        "merlin.tasks.classic.maze",
        "Maze",
        "SingleMaze",
        "find the goal of a perfect maze, new in each episode",
    ),
    "merlin/GoalMaze-v0": Task(
        "merlin.tasks.paper.goal_maze",
        "GoalMaze",
        "SingleGoalMaze",
        "find the goal of a new maze, or of many rooms, and find back to it from elsewhere, until the time is up",
    ),
    "merlin/WaterMaze-v0": Task(
        "merlin.tasks.paper.water_maze",
        "WaterMaze",
        "SingleWaterMaze",
        "find the hidden platform of each of `num_rooms` pools, and find back to it from elsewhere",
    ),
    "merlin/LatentLearning-v0": Task(
        "merlin.tasks.paper.latent_learning",
        "LatentLearning",
        "SingleLatentLearning",
        "explore a T-maze, see the colours of its arms; then one colour is worth 1: go to its arm",
    ),
    "merlin/KeyToDoor-v0": Task(
        "merlin.tasks.paper.key_to_door",
        "KeyToDoor",
        "SingleKeyToDoor",
        "take a key, eat apples for `distractor_steps`, then open a door, which takes the key",
    ),
    "merlin/ActiveVisualMatch-v0": Task(
        "merlin.tasks.paper.active_visual_match",
        "ActiveVisualMatch",
        "SingleActiveVisualMatch",
        "look for a coloured box, eat apples for `distractor_steps`, then go to the box of the same colour",
    ),
    "merlin/Empty-v0": Task(
        "merlin.tasks.minigrid_tasks.empty",
        "Empty",
        "SingleEmpty",
        "MiniGrid's Empty: walk to the goal in the corner of a room",
    ),
    "merlin/FourRooms-v0": Task(
        "merlin.tasks.minigrid_tasks.four_rooms",
        "FourRooms",
        "SingleFourRooms",
        "MiniGrid's FourRooms: find the goal in one of four rooms that gaps join",
    ),
    "merlin/LavaGap-v0": Task(
        "merlin.tasks.minigrid_tasks.lava_gap",
        "LavaGap",
        "SingleLavaGap",
        "MiniGrid's LavaGap: go through the gap in a stripe of lava to the goal",
    ),
    "merlin/DoorKey-v0": Task(
        "merlin.tasks.minigrid_tasks.door_key",
        "DoorKey",
        "SingleDoorKey",
        "MiniGrid's DoorKey: take the key, unlock the door, go to the goal",
    ),
    "merlin/RedBlueDoors-v0": Task(
        "merlin.tasks.minigrid_tasks.red_blue_doors",
        "RedBlueDoors",
        "SingleRedBlueDoors",
        "MiniGrid's RedBlueDoors: open the red door, then the blue one, which is out of its sight",
    ),
    "merlin/MultiRoom-v0": Task(
        "merlin.tasks.minigrid_tasks.multi_room",
        "MultiRoom",
        "SingleMultiRoom",
        "MiniGrid's MultiRoom: open the doors of a chain of rooms up to the goal in the last",
    ),
    "merlin/KeyCorridor-v0": Task(
        "merlin.tasks.minigrid_tasks.key_corridor",
        "KeyCorridor",
        "SingleKeyCorridor",
        "MiniGrid's KeyCorridor: find the key in one room, unlock another, pick up what lies there",
    ),
    "merlin/ObstructedMaze-v0": Task(
        "merlin.tasks.minigrid_tasks.obstructed_maze",
        "ObstructedMaze",
        "SingleObstructedMaze",
        "MiniGrid's ObstructedMaze: clear the way, unbox the key, unlock the door, pick up the blue ball",
    ),
    "merlin/CaptureTheFlag-v0": Task(
        "merlin.tasks.capture_the_flag.environment",
        "CaptureTheFlag",
        "SingleCaptureTheFlag",
        "two against two in a maze: take the opponents' flag home while your own is there; tag who carries yours",
    ),
}


def register() -> None:
    """Register every task with gymnasium; again is harmless."""
    registration = import_module(REGISTRATION)
    for task_id, task in TASKS.items():
        if task_id not in registration.registry:
            registration.register(
                task_id,
                entry_point=f"{task.module}:{task.single_name}",
                vector_entry_point=f"{task.module}:{task.vector_name}",
            )


def scores(task_id: str, **kwargs) -> dict[str, float]:
    """Return the expected episode returns {random, memoryless, oracle} of a task with these settings.

    What "memoryless" means, and whether a figure is exact, tells the module of the task.

    Raises:
        ValueError: For an id that is not in `TASKS`.
    """
    if task_id not in TASKS:
        raise ValueError(
            f"scores are known for {', '.join(TASKS)}, but {task_id!r} was asked for; use one of these ids."
        )
    task = TASKS[task_id]
    return getattr(import_module(task.module), task.vector_name)(**kwargs).scores


class RegisterLater:
    """Finder that registers the tasks once gymnasium is imported: doing it here would take most of the time."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != REGISTRATION:
            return None
        sys.meta_path.remove(cls)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = exec_module
        return spec


if __name__ == "tasks":  # found at the top of a checkout: there is one such package
    sys.modules[__name__] = import_module("merlin.tasks")
elif REGISTRATION in sys.modules:
    register()
else:
    sys.meta_path.insert(0, RegisterLater)
