"""Access strings: what they become, what is refused, and what no string whatever gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import valkey
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.servers import PASSWORD, REDIS_LIKE, build_of, servers

from cachekeep.engines import acl
from cachekeep.engines.users import WITHHELD, users_of
from cachekeep.model import ClientUser, NamedUsers

# ------------------------------------------------------------------ the texts


@pytest.mark.parametrize(
    ("given_text", "normal", "least"),
    [
        ("on ~* +@all", "on ~* +@all", "6.0"),  # as AWS shows its own default user
        ("on ~app::* -@all +@read +@hash -hset", "on ~app::* -@all +@read +@hash -hset", "6.0"),  # AWS's example
        ("+get", "off -@all +get", "6.0"),
        ("ON  ~a   +GET +@READ", "on ~a -@all +get +@read", "6.0"),
        ("on off on allkeys allcommands", "on ~* +@all", "6.0"),
        ("+@all -get -@all +set", "off -@all +set", "6.0"),
        ("+set -set +get +set", "off -@all +get +set", "6.0"),
        ("~a ~a resetkeys ~b", "off ~b -@all", "6.0"),
        ("on ~* &* +@all", "on ~* &* +@all", "6.2"),
        ("&news:* +@pubsub", "off resetchannels &news:* -@all +@pubsub", "6.2"),
        ("on resetchannels ~x +get", "on ~x resetchannels -@all +get", "6.2"),
        ("%R~a %W~b %RW~c %W~d %R~d", "off %R~a %W~b ~c ~d -@all", "7.0"),
        ("~x %R~* %W~*", "off ~* -@all", "6.0"),
        ("on +client|list -acl|cat", "on -@all +client|list -acl|cat", "7.0"),
        ("(~a +get) ( ~b &c +@all ) on", "on -@all (~a -@all +get) (~b resetchannels &c +@all)", "7.0"),
        ("(+get) clearselectors (+set)", "off -@all (-@all +set)", "7.0"),
        ("on ~* db=3,1 +get", "on ~* db=1,3 -@all +get", "9.1"),
        ("db=1 alldbs sanitize-payload", "off -@all", "6.0"),
        ("~Case:{x} +select|0", "off ~Case:{x} -@all +select|0", "7.0"),
    ],
)
def test_what_a_string_becomes(given_text: str, normal: str, least: str) -> None:
    found = acl.parse(given_text, WITHHELD)
    assert acl.normal(found) == normal
    assert ".".join(map(str, acl.least_version(found))) == least
    assert acl.parse(normal, WITHHELD) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("on >secret", "Passwords cannot be part"),
        ("on nopass", "Passwords cannot be part"),
        ("on #" + "0" * 64, "Passwords cannot be part"),
        ("on resetpass", "Passwords cannot be part"),
        ("on reset", "must not contain reset"),
        ("on +config", "restricted command"),
        ("on +config|get", "restricted command"),
        ("on +DEBUG|sleep", "restricted command"),
        ("on +acl|setuser", "restricted command"),
        ("on +acl|list", "restricted command"),
        ("on (+@read +psync)", "restricted command"),
        ("on +nosuch", "Unknown command or category"),
        ("on +@nosuch", "Unknown command or category"),
        ("on -get|x", "Unknown command or category"),
        ("on +client|nosuch", "Unknown command or category"),
        ("on ~* ~a", "adds nothing"),
        ("on &* &a", "adds nothing"),
        ("on (+get", "Unmatched parenthesis"),
        ("(+get (+set))", "parentheses"),
        ("(~a'b +get)", "quotes"),
        ("(on +get)", "Syntax error"),
        ("(+get >secret)", "Passwords cannot be part"),
        ("on %~a", "Syntax error"),
        ("on %X~a", "Syntax error"),
        ("on db=x", "databases are numbers"),
        ("on skip-sanitize-payload", "what a client restores is checked"),
        ("on ~a\n+@all", "printable"),
        ("on ~a\xa0+@all", "printable"),
        ("on hello", "Syntax error"),
        ("on " + "~a " * 3400, "at most 10000 characters"),
        ("on " + "(+get) " * 33, "at most 32 selectors"),
    ],
)
def test_what_no_user_can_have(text: str, words: str) -> None:
    with pytest.raises(acl.BadAccess, match=words):
        acl.parse(text, WITHHELD)


def test_before_redis_7_a_user_keeps_only_the_harmless_subcommands_that_it_had() -> None:
    def rules(access: str) -> set[str]:
        user = ClientUser(name="u", access=access, passwords=("0" * 64,))
        return set(users_of(NamedUsers(group="g", users=(user,)), "redis", (6, 2))[0].split())

    assert {"-acl", "+acl|whoami", "+script|load"} <= rules("on ~* +@all")
    assert not {r for r in rules("on ~* -@all +@read") if r.startswith(("+acl", "+script"))}
    assert {"+script|load"} == {r for r in rules("on ~* -@all +@scripting") if "|" in r and "load" in r}
    assert not {r for r in rules("on ~* +@all -@admin") if r.startswith("+acl")}


# ------------------------------------------------------------------ properties

_names = st.sampled_from(sorted(acl.commands()))
_patterns = st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Zs")), max_size=6)
_signs = st.sampled_from("+-")
RULES = st.one_of(
    st.sampled_from(
        "on off allkeys resetkeys ~* &* resetchannels allchannels +@all -@all allcommands nocommands clearselectors".split()  # noqa: SIM905
    ),
    st.builds(lambda sign, name: sign + name, _signs, _names),
    st.builds(lambda sign, name: f"{sign}@{name}", _signs, st.sampled_from(sorted(acl.CATEGORIES))),
    st.builds(lambda before, pattern: before + pattern, st.sampled_from(["~", "&", "%R~", "%W~", "%RW~"]), _patterns),
)
STRINGS = st.lists(st.one_of(RULES, st.lists(RULES, max_size=4).map(lambda rules: f"({' '.join(rules)})")), max_size=10).map(
    " ".join
)


def accepted(text: str) -> acl.Access | None:
    try:
        return acl.parse(text, WITHHELD)
    except acl.BadAccess:
        return None


@given(STRINGS)
def test_what_is_written_is_read_as_the_same(text: str) -> None:
    found = accepted(text)
    if found is not None:
        assert acl.parse(acl.normal(found), WITHHELD) == found
        assert acl.normal(acl.parse(acl.normal(found))) == acl.normal(found)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    accepted(text)


@given(STRINGS, st.sampled_from([("redis", (6, 2)), ("redis", (7, 0)), ("valkey", (8, 0)), ("valkey", (9, 1))]))
def test_what_is_withheld_comes_last_everywhere(text: str, engine: tuple[str, tuple[int, int]]) -> None:
    found = accepted(text)
    if found is None or (engine[1] < acl.least_version(found)):
        return
    user = ClientUser(name="u", access=acl.normal(found), passwords=("0" * 64,))
    line = users_of(NamedUsers(group="g", users=(user,)), *engine)[0]
    whole = {name for name in WITHHELD if "|" not in name}
    for part in (line.partition(" (")[0], *(s.rstrip(")") for s in line.split(" (")[1:])):
        words = part.split()
        last = max((at for at, word in enumerate(words) if word.startswith("+@")), default=-1)
        assert whole <= {word[1:] for word in words[last + 1 :] if word.startswith("-")}


# ------------------------------------------------------------------ real engines

_TRIED = 60


def _examples() -> list[str]:
    """Strings by chance, the same each time, and those that are meant to get round it."""
    import random

    chance = random.Random(7)
    names, categories = sorted(acl.commands()), sorted(acl.CATEGORIES)
    found = [
        "on ~* &* +@all",
        "off -@all (~* &* +@all)",
        "on +@all (+@all ~*) (+@admin ~* &*) (+@dangerous +acl +cluster +script +module)",
        "on ~* +@admin +@dangerous +acl +cluster +module +script",
        r"on ~a\ ~\"q\" ~'(x) ~) +@all (~x) +@read)",
        "on ~* -@all +@all -acl +acl -@admin +@admin",
    ]
    while len(found) < _TRIED:
        words = ["on", "~*"]
        for _ in range(chance.randrange(1, 12)):
            sign = chance.choice("++-")
            words.append(sign + chance.choice([f"@{chance.choice([*categories, 'all'])}", chance.choice(names)]))
        cut = chance.randrange(2, len(words) + 1)
        text = " ".join([*words[:cut], *([f"({' '.join(words[cut:])})"] if cut < len(words) else [])])
        if accepted(text) is not None:
            found.append(text)
    return [text for text in found if accepted(text) is not None]


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
def test_no_access_string_gives_what_is_withheld(engine: str, major: int, tmp_path: Path) -> None:
    """Every string that is accepted is taken by a real server, when it starts and while it runs, and gives none of it."""
    examples = [text for text in _examples() if "db=" not in text]
    users = tuple(
        ClientUser(name=f"u{at}", access=acl.normal(acl.parse(text)), passwords=("ab" * 32,)) for at, text in enumerate(examples)
    )
    with (
        servers(build_of(engine, major), tmp_path, 1, clients=NamedUsers(group="g", users=users)) as (server,),
        valkey.Valkey(server.node.address, 6379, username="cachekeep-admin", password=PASSWORD.value, decode_responses=True) as c,
    ):
        for line in users_of(NamedUsers(group="g", users=users), server.node.engine, _numbers(server.node.version)):
            assert c.execute_command("ACL", "SETUSER", *line.split()) == "OK", line
        known = [
            name
            for name in sorted(acl.commands())
            if WITHHELD & {name, name.partition("|")[0]} and acl.knows(server.node.engine, _numbers(server.node.version), name)
            if not any(other.startswith(f"{name}|") for other in acl.commands())
        ]
        assert len(known) >= 40
        for user in users:
            for name in known:
                assert not _may(c, user.name, name), (user.access, name)
        assert _may(c, "u0", "get")
        assert _may(c, "u0", "acl|whoami")
        assert not _may(c, "u0", "acl|users")


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = map(int, version.split("."))
    return major, minor


def _may(admin: valkey.Valkey, user: str, name: str) -> bool:
    """By the word of the server (ACL DRYRUN)."""
    words = [*name.split("|"), *["1"] * 6]
    for _ in range(7):
        try:
            return bool(admin.execute_command("ACL", "DRYRUN", user, *words) == "OK")
        except valkey.exceptions.ResponseError as error:
            if "number of arguments" not in str(error):
                return "permission" not in str(error)
            words.pop()
    raise AssertionError(name)


@pytest.mark.parametrize(("engine", "major"), REDIS_LIKE)
def test_the_table_knows_every_command_of_an_engine(engine: str, major: int, tmp_path: Path) -> None:
    with servers(build_of(engine, major), tmp_path, 1) as (server,), valkey.Valkey(server.node.address, 6379) as c:
        names = {name.decode() for name in c.execute_command("COMMAND LIST")}
        names |= {
            sub.decode()
            for name in ("acl", "client", "cluster", "config", "script", "function", "xinfo")
            for sub in c.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", f"{name}|*")
        }
        numbers = _numbers(server.build.version)
        known = {name for name in acl.commands() if acl.knows(engine, numbers, name)}
        assert names <= known
        assert {name for name in known if "|" not in name} <= names
        assert {c.decode() for c in c.execute_command("ACL", "CAT")} == acl.CATEGORIES
