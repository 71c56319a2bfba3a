import multiprocessing

import pytest


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    left = multiprocessing.active_children()
    for worker in left:
        worker.kill()
        worker.join()
    assert not left
