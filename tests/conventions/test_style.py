import io
import re
import tokenize
import tomllib

from tests.conventions.tools import ROOT, complain, judge, named, sources


def test_ruff_has_no_complaint() -> None:
    """What a rule can say about the code, no reviewer has to."""
    judge("ruff", "check")


def test_ruff_would_lay_out_no_file_otherwise() -> None:
    """There is one layout, and nobody chooses it."""
    judge("ruff", "format", "--check", "--diff")


def test_every_rule_is_on() -> None:
    """Rules are left out by name, never by not being chosen."""
    lint = tomllib.loads((ROOT / "ruff.toml").read_text())["lint"]

    assert lint["select"] == ["ALL"]


def test_each_ignored_rule_has_its_reason() -> None:
    """An ignore without a reason is a rule that somebody found tiresome."""
    ignored = re.findall(r'"([A-Z]+[0-9]*)"[],]+(.*)$', (ROOT / "ruff.toml").read_text(), re.MULTILINE)

    assert {"COM812", "N801", "S101"} <= {rule for rule, _ in ignored}
    complain(f"ruff.toml: {rule}" for rule, rest in ignored if rule != "ALL" and not re.search(r"# \S", rest))


def test_a_checker_is_silenced_by_code_only() -> None:
    """``noqa`` and ``type: ignore`` name what they silence, so that they silence nothing else."""
    complain(
        f"{named(path)}:{token.start[0]}: {token.string}"
        for path in sources(".py")
        for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
        if token.type == tokenize.COMMENT and re.search(r"noqa(?!: ?[A-Z])|type: ?ignore(?!\[)", token.string)
    )


def test_nothing_is_left_for_later_in_a_comment() -> None:
    """What is not done is an issue, where it can be found and closed."""
    later = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
    complain(
        f"{named(path)}:{number}: {line.strip()}"
        for path in [
            *sources(".py", ".proto", ".c", ".h", ".md", ".toml", ".yaml"),
            ROOT / "Makefile",
            ROOT / ".ci/run",
        ]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if later.search(line)
    )
