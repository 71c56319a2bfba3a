"""A window that shows pictures: what render_mode="human" means."""

import os

import numpy as np
from gymnasium.error import DependencyNotInstalled
from jaxtyping import UInt8

SMALLEST_SIDE = 480  # pixels; smaller pictures are shown larger


class Window:
    """A window of pygame, which comes with minigrid. It opens with the first picture; a process has one at a time.

    Raises:
        gymnasium.error.DependencyNotInstalled: There is no pygame.
    """

    def __init__(self, title: str, pictures_per_second: int):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on standard output
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled(
                "render_mode='human' needs pygame, which is not installed: pip install pygame-ce."
            ) from error
        self.pygame, self.title, self.pictures_per_second = pygame, title, pictures_per_second
        self.clock = pygame.time.Clock()

    def show(self, picture: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Show a picture, and wait until it is time for another."""
        display = self.pygame.display
        height, width = picture.shape[:2]
        scale = max(1, SMALLEST_SIDE // max(height, width))
        size = (width * scale, height * scale)
        display.init()  # again is harmless
        window = display.get_surface()
        if window is None or window.get_size() != size:
            window = display.set_mode(size)
        display.set_caption(self.title)
        surface = self.pygame.surfarray.make_surface(picture.transpose(1, 0, 2))
        window.blit(self.pygame.transform.scale(surface, size), (0, 0))
        self.pygame.event.pump()
        display.flip()
        self.clock.tick(self.pictures_per_second)

    def close(self) -> None:
        self.pygame.display.quit()
