"""Random command lines, mostly wrong ones, that set every key of the schema and keys that do not exist."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections.abc import Iterator

from truba_runner.config.schema import Experiment

VALUES = (
    *("0", "1", "-1", "3", "1.5", "1e-3", "1e400", "nan", "inf", "-inf", "99999999999999999999", "true", "false"),
    *("null", "''", "???", "'???'", "~", "auto", "min", "adam", "mse", "30", "1h", "2-00:00:00", "soon", "a b", "a/b"),
    *("'[/red]'", "'[bold]'", "'/tmp/[old]'", "'{x}'", "'%s'", "'a,b'", "'a=b'", "'$HOME'", "'\\n'", "'\x1b[31m'"),
    *("'şöyle'", "'  '", "-x", ".", "..", "/", "'*'", "a" * 300, "'" + "a/" * 3000 + "'"),
    *("[]", "[1]", "[null]", "[[1]]", "[a,b]", "[{a:1}]", "[nan]", "['']", "[1,a,null]", "[{class_name:Adam}]"),
    *("{}", "{a:1}", "{a:null}", "{1:2}", "{0:1.0,a:2}", "{a:{b:[c]}}", "{class_name:Adam,config:{}}", "{null:1}"),
    *("{class_name:1}", "{choice:{values:[1]}}", "{true:1,a:2}", "{'':1}", "{rate:valley}", "{a:nan}"),
    *(
        "${train}",
        "${train.epochs}",
        "${name}",
        "${nothing}",
        "${oc.env:NOTHING}",
        "${oc.env:HOME}",
        "${}",
        "${",
        "${a",
    ),
    *("${nope:1}", "${.}", "${..name}", "${data.options}", "${train.callbacks}", "${cluster.partitions}", "\\${name}"),
    *("${hydra:job.num}", "${hydra:runtime.cwd}", "${hydra.job.num}", "${oc.create:{a:1}}", "x${train.epochs}"),
    *("${oc.decode:'['}", "${user:1}", "${detect_cluster:}", "${now:%Y}", "${oc.select:x}", "${train.callbacks.0}"),
    *("1,2", "a,b", "range(3)", "choice(1,2)", "glob(*)", "interval(0,1)", "choice()", "range(0)", "range(1,2,0)"),
    *("[", "{a", "'", "", "int(3)", "json_str({a:1})", "extend_list(1)", "sort(3,1)", "shuffle(1,2)", "tag(a)"),
)
# Values for sweeps.
SWEPT = (
    "1,2",
    "nan,inf,-inf",
    "null,1",
    "[1],[2]",
    "{a:1},{b:2}",
    "${name},1",
    "a,b",
    "range(3)",
    "0,-1",
    "1,1",
    "'',x",
)
# Choices of config groups, most of them invalid; few, as Hydra composes once for each.
GROUPS = (
    *(["+experiment=fraud"], ["+experiment=pets_two_stage", "cluster=truba"], ["+experiment=mnist_search"], []),
    *(["+experiment=null"], ["+experiment=[a,null]"], ["+experiment=${name}"], ["experiment=mnist"], ["~experiment"]),
    *(["+experiment=mnist", f"cluster={choice}"] for choice in ("nothing", "testcluster", "1.5", "[]", "''", "{}")),
    *(["+experiment=mnist", choice] for choice in ("environment=module", "environment=apptainer", "~environment")),
    *(
        ["+experiment=mnist", choice]
        for choice in ("environment=???", "~environment=[1]", "environment/x=1", "++sweep=a")
    ),
    *(["+experiment=mnist", choice] for choice in ("sweep=lr_find", "sweep=grid", "sweep@x=grid", "sweep=mnist,grid")),
)
# Valid overrides, so that later checks are reached too.
RIGHT = (
    *("resources.gpus=2", "resources.time=2h", "name=other", "train.batch_size=32", "job.backend=fastai", "fresh=true"),
    *("resources.partition=debug", "resources.constraint=akya-cuda", "resources.time=auto", "resources.nodes=2"),
    *("train.lr_find=valley", "checkpoint.verify=true", "resources.segment=30", "resources.mail_user=a@b.c"),
    *("train.recipe=[{fit:1}]", "job.options={a:1}", "+job.options.x=1", "resources.memory_gb=10"),
)


# Values of the right type for a key, but seldom valid.
TYPED = {
    int: ("0", "1", "2", "3", "-1", "64", "1000000", "99999999999999999999"),
    float: ("0", "0.5", "1e-3", "-1.0", "30", "1e400", "nan", "inf", "-inf"),
    bool: ("true", "false"),
    str: (
        "''",
        "a",
        "auto",
        "min",
        "val_loss",
        "1h",
        "adam",
        "/tmp",
        "a/b",
        "'[/red]'",
        "'şöyle b'",
        "http://[",
        "*",
        "(",
        "~",
    ),
    list: (
        "[]",
        "[1]",
        "[a]",
        "[a,b]",
        "[null]",
        "[[1]]",
        "[{a:1}]",
        "['']",
        "[{class_name:Adam}]",
        "[10,20]",
        "[20,10]",
    ),
    dict: ("{}", "{a:1}", "{a:null}", "{1:2}", "{a:{b:[c]}}", "{a:nan}", "{arch:x}", "{name:x}", "{'':''}"),
    object: (
        "adam",
        "1",
        "null",
        "[a]",
        "[1,a]",
        "{a:b}",
        "{class_name:Adam,config:{}}",
        "{class_name:1}",
        "{0:1.0,a:2}",
    ),
}


def keys() -> list[tuple[str, typing.Any]]:
    """Return every key of the schema with its type, and some keys inside free-form mappings."""
    return [*_keys(Experiment, ""), ("cluster.partitions.akya-cuda", dict), ("cluster.partitions.akya-cuda.nodes", int)]


def _keys(kind: type, prefix: str) -> Iterator[tuple[str, typing.Any]]:
    for name, annotation in typing.get_type_hints(kind).items():
        yield prefix + name, _plain(annotation)
        if dataclasses.is_dataclass(annotation):
            yield from _keys(typing.cast(type, annotation), f"{prefix}{name}.")
        elif typing.get_origin(annotation) is dict:
            of = typing.get_args(annotation)[1]
            yield f"{prefix}{name}.x", _plain(of)
            if dataclasses.is_dataclass(of):
                yield from _keys(typing.cast(type, of), f"{prefix}{name}.x.")


def _plain(annotation: typing.Any) -> typing.Any:
    """Reduce a type annotation to a key of `TYPED`."""
    found = next(
        (one for one in typing.get_args(annotation) if one in TYPED), typing.get_origin(annotation) or annotation
    )
    return found if found in TYPED else dict if dataclasses.is_dataclass(found) else object


def lines(count: int, seed: int) -> Iterator[list[str]]:
    """Yield `count` command lines, all dry runs, determined by the seed."""
    draw, every = random.Random(seed), keys()
    for number in range(count):
        sweeps = draw.random() < 0.1
        overrides = [_override(draw, draw.choice(every), sweeps) for _ in range(draw.choice((1, 1, 1, 2)))]
        # Take the keys in turn, so that none is left out by chance.
        overrides[0] = _override(draw, every[number % len(every)], sweeps)
        overrides += draw.sample(RIGHT, draw.choice((0, 0, 0, 1, 2)))
        draw.shuffle(overrides)
        yield [*(["-m"] if sweeps else []), *_groups(draw), *overrides, "dry_run=true"]


def _groups(draw: random.Random) -> list[str]:
    if draw.random() < 0.1:
        return draw.choice(GROUPS)
    return ["+experiment=mnist", f"cluster={draw.choice(('small', 'local'))}"]


def _override(draw: random.Random, key: tuple[str, typing.Any], sweeps: bool) -> str:
    name, kind = key
    if draw.random() < 0.6:
        values = TYPED[kind]
        value = f"{draw.choice(values)},{draw.choice(values)}" if sweeps else draw.choice(values)
        return f"{'++' if name.split('.')[-1] == 'x' else ''}{name}={value}"
    sign = draw.choice(("", "", "", "", "+", "++", "~", "~~"))
    if sign == "~":
        return f"~{name}"
    name = draw.choice((name, name, name, name, f"{name}.x", f"{name}.0", f"{name}[0]", f"{name}@x", name.upper()))
    value = draw.choice(SWEPT if sweeps and draw.random() < 0.7 else VALUES)
    return f"{sign[:1] if sign != '++' else sign}{name}={value}"
