import inspect
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three drawn pictures of one thing."""
    folder = tmp_path / "biscuit"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "green")):
        picture = Image.new("RGB", (48, 40), colour)
        ImageDraw.Draw(picture).ellipse((10 + i, 8, 34 + i, 32), fill="orange", outline="black")
        picture.save(folder / f"{i}.png")
    return folder


@pytest.fixture
def follow(monkeypatch):
    """Follows functions of a module: name -> the arguments of each call, by their names and with their defaults.

    `follow(module, "attach", fit=stand_in)`: `attach` is called as ever, `fit` is replaced: by a function of the
    arguments, or by anything else, which it then returns.
    """

    def follower(calls: list, original, *given):
        signature = inspect.signature(original)

        def called(*arguments, **named):
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            calls.append(found := dict(bound.arguments))
            if not given:
                return original(*arguments, **named)
            return given[0](found) if callable(given[0]) else given[0]

        called.__signature__ = signature
        return called

    def follow(module, *names: str, **replaced) -> dict[str, list[dict]]:
        calls = {}
        for name in dict.fromkeys((*names, *replaced)):
            calls[name] = []
            given = (replaced[name],) if name in replaced else ()
            monkeypatch.setattr(module, name, follower(calls[name], getattr(module, name), *given))
        return calls

    return follow


@pytest.fixture
def trained():
    """Stands in for `fit`: saves what is attached as it is, and writes a log of two steps."""

    def fit(given) -> dict:
        for name, each in given["attachments"].items():
            each.save(given["folder"] / f"{name}.safetensors", {})
        rows = [{"step": 1, "loss": 2.0, "seconds": 0.5}, {"step": 2, "loss": 1.0, "seconds": 0.5}]
        given["folder"].mkdir(parents=True, exist_ok=True)
        (given["folder"] / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given["on"] = [each.enabled for each in given["attachments"].values()]
        return {"trainable_parameters": 3, "resumed_at": 0}

    return fit


class SecondProcess:
    """An accelerator as the second of two processes sees it."""

    is_main_process, process_index, num_processes, device = False, 1, 2, torch.device("cpu")

    def __init__(self) -> None:
        self.waited = 0

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def second_process():
    return SecondProcess()
