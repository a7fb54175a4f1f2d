"""How long the timer holds Blender's main thread."""

from __future__ import annotations

from dataclasses import dataclass

SLOW_TICK = 0.020  # seconds; longer ones are counted, since a person sees a hitch


@dataclass
class TickFigures:
    """How long the timer held Blender's main thread, by what it was doing. For tests and for finding hitches."""

    ticks: int = 0
    slow: int = 0  # ticks above SLOW_TICK, without those that start a render or insert a result
    longest: float = 0.0
    longest_capture: float = 0.0  # preparing the scene and starting a render are single calls into Blender
    longest_insert: float = 0.0  # the operator together with Blender's own undo step
    longest_cpu: float = 0.0  # as `longest`, without the time in which other programs had the processor

    def count(self, phase: str, seconds: float, cpu_seconds: float) -> None:
        self.ticks += 1
        if phase == "CAPTURING":
            self.longest_capture = max(self.longest_capture, seconds)
        elif phase == "INSERTING":
            self.longest_insert = max(self.longest_insert, seconds)
        else:
            self.longest = max(self.longest, seconds)
            self.longest_cpu = max(self.longest_cpu, cpu_seconds)
            self.slow += seconds > SLOW_TICK
