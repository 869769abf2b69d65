"""Documents made from code: settings, commands, metrics and alert rules.

`make docs` writes them; tests/unit/test_docs.py fails where they are out of date.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from channelindex import exits
from channelindex.config_text import format_value
from channelindex.settings import ENVIRONMENT_PREFIX, SECTIONS, SETTINGS, Setting
from workers import cli
from workers.serving.counters import SERVE_METRICS
from workers.telemetry import alerts, metrics

_CONFIGURATION_INTRODUCTION = f"""\
# Configuration

Made by `make docs` from `channelindex/settings.py`; do not edit.

A key's value is taken from the last of these that sets it: its default, the TOML file (`--config FILE`, else
`./channelindex.toml` where that exists), the environment (`{ENVIRONMENT_PREFIX}SECTION_KEY`, such as
`{SETTINGS["index.store"].variable}`), and `--set section.key=value`. `channelindex config show` prints every key with
its value and where it was set, without passwords; `channelindex config check` prints every problem.
"""

_COMMANDS_INTRODUCTION = """\
# Commands

Made by `make docs` from the parsers in `workers/cli`; do not edit.

Results go to stdout. Every error is one line on stderr, `channelindex: …`, and an [exit code](#exit-codes); `--debug`
adds the traceback.
"""

_METRICS_INTRODUCTION = """\
# Metrics

Made by `make docs` from `workers/telemetry/metrics.py` and `workers/telemetry/alerts.py`; do not edit.

A node serves them at `/metrics` of `metrics.listen`, which is off unless set. They are read from shared memory when
asked for; a worker's counters start at 0 with the worker, as Prometheus expects of a process. `worker` is its number in
its `role`. [`alerts.yml`](alerts.yml) has the rules of [Alerts](#alerts) for Prometheus, and
[`dashboard.json`](dashboard.json) a Grafana dashboard.

```yaml
scrape_configs:
  - job_name: channelindex
    static_configs:
      - targets: ["node1:9480", "node2:9480"]
rule_files: [alerts.yml]
```

`/healthz` answers 200 while the supervisor works. `/readyz` answers 200 when the leases are settled, all partitions of
the node are streaming, none lags by more than `metrics.ready_lag_s`, and no more than
`metrics.ready_quarantined` documents could not be decoded; else 503 with one line per reason.

## Catalogue
"""

_SERVE_INTRODUCTION = """\
## The changes feed

`channelindex serve` has metrics of its own, at `/metrics` of `serve.operator_listen`, beside those of its process that
prometheus_client calls `process_…`.
"""

_ALERTS_INTRODUCTION = """\
## Alerts

Their names begin with `ChannelIndex`. `severity` is warning or critical; critical means that indexing has
stopped for some partitions, or soon will.
"""


def configuration() -> str:
    """docs/configuration.md."""
    parts = [_CONFIGURATION_INTRODUCTION]
    for section, kind in SECTIONS.items():
        rows = [_setting_row(setting) for key, setting in SETTINGS.items() if key.startswith(section + ".")]
        head = "| key | default | allowed | what it is |\n| --- | --- | --- | --- |"
        parts.append(f"## [{section}]\n\n{inspect.getdoc(kind)}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _setting_row(setting: Setting) -> str:
    default = setting.default_text or ("" if setting.default == "" else f"`{format_value(setting, setting.default)}`")
    allowed = f"{setting.bounds} {setting.unit}".strip()
    return f"| `{setting.key}` | {default} | {allowed} | {setting.doc} |"


def commands() -> str:
    """docs/commands.md."""
    _, parser_by_command = cli.build_parser(cli.COMMANDS)
    parts = [_COMMANDS_INTRODUCTION, "| command | does |\n| --- | --- |"]
    parts[-1] += "".join(f"\n| [`{name}`](#{name}) | {summary} |" for name, summary in cli.COMMANDS.items()) + "\n"
    parts += [_command(name, parser) for name, parser in parser_by_command.items()]
    parts.append("## Exit codes\n\n| code | means |\n| --- | --- |")
    parts[-1] += "".join(f"\n| {code} | {text} |" for code, text in exits.MEANING_BY_CODE.items()) + "\n"
    return "\n".join(parts)


def metrics_and_alerts() -> str:
    """docs/metrics.md."""
    parts = [_METRICS_INTRODUCTION, _metrics_table(metrics.METRICS)]
    parts += [_SERVE_INTRODUCTION, _metrics_table(SERVE_METRICS)]
    parts += [_ALERTS_INTRODUCTION, "| alert | severity | meaning | what to do |\n| --- | --- | --- | --- |"]
    parts[-1] += "".join(
        f"\n| {alert.name} | {alert.severity} | {alert.meaning} | {alert.action} |" for alert in alerts.ALERTS
    )
    return "\n".join(parts) + "\n"


def _metrics_table(catalogue: Sequence[metrics.Metric]) -> str:
    table = "| metric | kind | unit | labels | meaning | when it looks wrong |\n| --- | --- | --- | --- | --- | --- |"
    for metric in catalogue:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        table += f"\n| `{metric.exposed_name}` | {metric.kind} | {metric.unit} | {labels} | {metric.meaning} "
        table += f"| {metric.action} |"
    return f"{table}\n"


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    rows = "\n".join(f"| `{names}` | {text} |" for names, text in arguments(parser))
    head = "| argument | meaning |\n| --- | --- |"
    return f"## {name}\n\n{parser.description}\n\n```\n{parser.epilog}```\n\n{head}\n{rows}\n"


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each argument of a command as it is written, with its meaning."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action, argparse._HelpAction):  # noqa: SLF001
            continue
        value = action.metavar or (" or ".join(map(str, action.choices)) if action.choices else action.dest.upper())
        takes_value = action.nargs != 0
        names = ", ".join(action.option_strings) + (f" {value}" if takes_value else "")
        yield names.strip(), (action.help or "") % {"default": action.default}


def main(folder: Path) -> None:
    """Write all of them into *folder*."""
    (folder / "configuration.md").write_text(configuration(), encoding="utf-8")
    (folder / "commands.md").write_text(commands(), encoding="utf-8")
    (folder / "metrics.md").write_text(metrics_and_alerts(), encoding="utf-8")
    (folder / "alerts.yml").write_text(alerts.rules(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
