"""How to use an adapter: lines to copy, with the paths of this run."""

import shlex
from dataclasses import dataclass

from ..adapters import TRAINED
from .run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A titled piece of code."""

    title: str
    code: str


def usage(run: RunFolder, *, token: str, noun: str, base: str) -> list[Snippet]:
    """Command line and Python for the run's adapter (which must exist), on the base that it was trained on."""
    controlled = bool(run.signals)  # then the folder stands for its adapter and its hint
    path = str((run.folder if controlled else run.folder / "adapter.safetensors").resolve())
    strength = 1.0 if controlled else 0.8
    prompts = run.prompts.get("prompts")
    subject = " ".join(part for part in (token, noun) if part) or "picture"
    prompt = str(prompts[0]) if isinstance(prompts, list) and prompts else f"a {subject}"
    base = base or "embedded"
    given = {name: str(run.config.get(name) or "") for name in ("base_config", "prediction_type")}
    flags = "".join(f" --{name.replace('_', '-')} {shlex.quote(value)}" for name, value in given.items() if value)
    keywords = {"config": given["base_config"], "prediction_type": given["prediction_type"]}
    loaded = "".join(f", {name}={value!r}" for name, value in keywords.items() if value)
    shell = (
        f"diffadapt sample {shlex.quote(prompt)} \\\n"
        f"    --base {shlex.quote(base)}{flags} --seed 0 --out pictures \\\n"
        f"    --adapter {shlex.quote(f'{path}:{strength:g}')}" + (" --control signal.png" if controlled else "")
    )
    python = (
        "import diffadapt as da\n\n"
        f"base = da.load_base({base!r}{loaded})\n"
        "pictures = da.sample(\n"
        f"    base, {prompt!r},\n"
        f"    adapters=[({path!r}, {strength:g})], seed=0," + (' control="signal.png",' if controlled else "") + "\n"
        ")\n"
        'pictures[0].save("picture.png")'
    )
    snippets = [Snippet(title="Command line", code=shell), Snippet(title="Python", code=python)]
    method = TRAINED.get(run.metadata.get("method", ""))
    if method and method.merges and not controlled:
        merge = f"diffadapt merge --base {shlex.quote(base)}{flags} --out merged \\\n    --adapter {shlex.quote(path)}"
        title = "Merged into the weights, for any program that opens diffusers folders"
        snippets.append(Snippet(title=title, code=merge))
    return snippets
