"""What each task asks, the inputs drawn, and the reference answers; importing a set registers its tasks."""

from vaecourse.coursework.tasks import ps1, ps2, ps3, ps4, ps5

__all__ = ["ps1", "ps2", "ps3", "ps4", "ps5"]
