"""`gradscale replay`: what other policies would have done on a recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gradscale.cli.display import console
from gradscale.cli.errors import BadInput, bad_input
from gradscale.cli.options import NO_COLOR
from gradscale.cli.progress import progress
from gradscale.cli.prose import say
from gradscale.cli.replay_table import replay_table, words
from gradscale.files.json_text import json_value
from gradscale.recording import Recording, read
from gradscale.replay import Replay, policy_from, replay


@click.command(name="replay", short_help="What another policy would have done on a recorded run.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME(SETTING=…)",
    help="Which; several make a table.  [the recorded one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@click.option("--steps", "with_steps", is_flag=True, help="With --json: every step of each, too.")
@NO_COLOR
def replay_command(
    run: Path, policies: tuple[str, ...], as_json: bool, with_steps: bool, no_color: bool
) -> None:
    """Lead other policies along a recorded run and say what each would have done.

    RUN is a recording, or a folder with one: `gradscale train --record` or `gradscale.Recorder`
    make them. The answer is a table of scales, skipped steps and lost gradients. An answer is exact
    as long as the policy chooses the recorded scales; at other scales, what would have overflowed
    is predicted from the magnitudes that were recorded; and from the first step on that would have
    been skipped and was not, or the other way round, the run would have taken another course.

    \b
    A policy is a name, with settings in parentheses:
      static dynamic last-maximum lognormal quantile band two-sided guarded
      recovering apex deepspeed megatron fairseq metaseq keras jmp flax paddle
      mindspore colossalai popart openseq2seq-backoff openseq2seq-logmax verl
      icefall lerobot torch

    \b
    Examples:
      gradscale replay runs/mine
      gradscale replay runs/mine --policy lognormal
      gradscale replay runs/mine --policy "dynamic(init_scale=2^20)"
      gradscale replay runs/mine --policy lognormal --policy deepspeed
      gradscale replay runs/mine --policy "guarded(policy=lognormal)" --json
    """  # noqa: D301
    if with_steps and not as_json:
        raise BadInput("`--steps` goes with `--json`. Pass both, or neither.")
    errors = console(stderr=True, no_color=no_color)
    with bad_input((ValueError, TypeError, OSError)):
        # Before the recording is read, which takes longer than to see a wrong name.
        chosen = [(text, policy_from(text)) for text in policies] or [("recorded policy", None)]
        with errors.status("reading"):  # which writes nothing where that is no terminal
            recording = read(run)
        found: list[tuple[str, Replay]] = []
        count, total = len(recording.steps), len(recording.steps) * len(chosen)
        with progress(errors, "replaying") as tell:

            def on_step(done: int) -> None:
                tell(len(found) * count + done, total, "replaying")

            for text, policy in chosen:
                found.append((text, replay(recording, policy, on_step=on_step)))
    if as_json:
        click.echo(
            json.dumps(json_value(_as_json(recording, found, with_steps=with_steps)), indent=2)
        )
        return
    screen = console(no_color=no_color)
    screen.print(replay_table(recording, found, screen.width))
    for line in words(recording, found):
        say(screen, line, style="dim")


def _as_json(
    recording: Recording, found: list[tuple[str, Replay]], *, with_steps: bool
) -> dict[str, object]:
    answers: list[dict[str, object]] = []
    for text, one in found:
        answer: dict[str, object] = {"name": text, **one.to_dict()}
        if with_steps:
            answer["every_step"] = [step._asdict() for step in one.steps]
        answers.append(answer)
    recorded = {
        "path": str(recording.path),
        "policy": recording.header.policy,
        "steps": len(recording.steps),
        "skipped": sum(step.skipped for step in recording.steps),
    }
    return {"recorded": recorded, "replays": answers}
