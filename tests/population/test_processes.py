"""A population of several processes: bit for bit that of one."""

import shutil

from merlin.training import checkpoint
from tests.population.test_killed import check_whole, everything, train
from tests.population.test_population import same
from tests.runs.test_distributed import ends, together

TRAIN = "import sys; from tests.population.test_killed import train; train(sys.argv[1], 12)"


def test_two_processes_train_the_population_of_one(tmp_path):
    one, two, later = (tmp_path / name for name in ("one", "two", "later"))
    processes = together(["-c", TRAIN, str(two)])
    train(one, 12)
    for code, output, errors in ends(processes):
        assert code == 0, output + errors
    whole = everything(one)
    assert all(map(same, whole, everything(two)))
    copies = [row for row in whole[0][0] if row["kind"] == "evolution"]
    assert any(row["agent"] % 2 != row["copied"] % 2 for row in copies)  # from one process to the other
    assert check_whole(two) == check_whole(one) >= 64 * 12

    shutil.copytree(two, later)  # what two processes began, one goes on with
    shutil.rmtree(checkpoint.steps(later)[-1])
    train(later, 12)
    assert all(map(same, whole, everything(later)))
