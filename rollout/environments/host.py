"""The process of a user's own environments: many episodes at a time, each an object of the user's class.

Started as reward/own_process.py starts it. It ends with its parent.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raylign.reward.function_call import error_text
from raylign.reward.function_messages import FunctionError
from raylign.reward.own_host import end_with_parent, load_code
from raylign.rollout.environments.interfaces import Environment, EnvironmentFailure, EnvironmentRefused, Outcome
from raylign.rollout.environments.messages import Answer, Ask, Hello, Ready, Verb
from raylign.rollout.environments.objects import as_environment, made_by, tools_of

MOST_THREADS = 64
"""Calls of plain methods under way at once."""


def main() -> None:
    """Load, answer, then serve episodes until the parent closes the pipe."""
    folder = Path(sys.argv[2])  # the parent's, which removes it
    end_with_parent(folder)
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    del sys.argv[1:]  # nothing of it is for the class's module
    hello: Hello = pipe.recv()
    try:
        factory = load_code(hello.code, folder, "class")
        tools = tools_of(made_by(factory, hello.arguments))
    except (FunctionError, EnvironmentRefused) as error:
        pipe.send(Ready(str(error)))
        return
    pipe.send(Ready("", tools))
    asyncio.run(_serve(pipe, folder, factory, hello.arguments))


async def _serve(
    pipe: Connection[Any, Any], folder: Path, factory: Callable[..., object], arguments: Mapping[str, str]
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MOST_THREADS))
    episodes: dict[int, Environment] = {}
    tasks: set[asyncio.Task[None]] = set()

    def begin(ask: Ask) -> None:
        task = loop.create_task(_answer(pipe, ask, episodes, lambda: as_environment(made_by(factory, arguments))))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def read() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(begin, pipe.recv())
        except (EOFError, OSError):
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)  # a thread of a tool that hangs would keep the process

    await asyncio.to_thread(read)


async def _answer(
    pipe: Connection[Any, Any], ask: Ask, episodes: dict[int, Environment], make: Callable[[], Environment]
) -> None:
    try:
        value = await _called(ask, episodes, make)
        pipe.send(Answer(ask.number, value))
    except (EnvironmentFailure, EnvironmentRefused) as error:
        pipe.send(Answer(ask.number, failure=str(error)))
    except OSError:
        return  # the parent is gone
    except Exception as error:  # of the user's code, outside its calls: unanswered, it would read as one that hangs
        pipe.send(Answer(ask.number, failure=f"{ask.verb.value} raised {error_text(error)}"))


async def _called(
    ask: Ask, episodes: dict[int, Environment], make: Callable[[], Environment]
) -> Outcome | float | str | None:
    match ask.verb:
        case Verb.RESET:
            episodes[ask.episode] = made = make()
            return await made.reset(ask.row or {}, ask.seed)
        case Verb.STEP:
            return await episodes[ask.episode].step(ask.action)
        case Verb.FINAL_REWARD:
            assert isinstance(ask.action, str)
            return await episodes[ask.episode].final_reward(ask.action)
        case Verb.CLOSE:
            made_before = episodes.pop(ask.episode, None)
            if made_before is not None:
                await made_before.close()
            return None
        case Verb.PING:
            return None
