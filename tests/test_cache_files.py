"""Caches on the disk: what is written comes back, or an error does."""

import collections
import errno
import json
import math
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.cache import draft as drafts
from kdtoolkit.cache import format as formats
from kdtoolkit.cache import table as tables
from kdtoolkit.cache.draft import Draft, size_of
from kdtoolkit.cache.format import Column
from kdtoolkit.cache.table import Table

pytestmark = pytest.mark.core

COLUMNS = [Column("scores", "float16", (3,)), Column("crc", "uint32")]
ABOUT = {"model": "teacher", "seed": 3}


def values_of(columns, rows, seed=0):
    """Any bits, NaN among them: a cache doesn't look at what it keeps."""
    generator = np.random.default_rng(seed)
    values = {}
    for column in columns:
        itemsize = np.dtype(column.dtype).itemsize
        drawn = generator.bytes(rows * math.prod(column.shape) * itemsize)
        values[column.name] = np.frombuffer(drawn, column.dtype).reshape(rows, *column.shape)
    return values


def build(path, rows=10, columns=COLUMNS, about=ABOUT, **sharding):
    draft = Draft(path, rows, columns, about, **sharding)
    values = values_of(columns, rows)
    draft.write(np.arange(rows), values)
    draft.finish()
    return values


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def picked(values, rows):
    return {name: array[rows] for name, array in values.items()}


def parsed(path):
    """A reader of its own, from the documentation: header, columns, and where each column is."""
    data = path.read_bytes()
    magic, length, crc = struct.unpack_from("<8sII", data)
    text = data[16 : 16 + length]
    assert (magic, crc, (16 + length) % 64) == (b"KDCACHE1", zlib.crc32(text), 0)
    header, offset, columns, places = json.loads(text), 16 + length, {}, {}
    for column in header["columns"]:
        shape = header["count"], *column["shape"]
        dtype = np.dtype(column["dtype"]).newbyteorder("<")
        size = math.prod(shape) * dtype.itemsize
        assert zlib.crc32(data[offset : offset + size]) == column["crc32"]
        array = np.frombuffer(data, dtype, math.prod(shape), offset)
        columns[column["name"]] = array.reshape(shape)
        places[column["name"]] = range(offset, offset + size)
        assert not any(data[offset + size : offset + -(-size // 64) * 64])
        offset += -(-size // 64) * 64
    assert offset == len(data)
    return header, columns, places


# --- what is written comes back ------------------------------------------------------------------


@pytest.mark.parametrize("rows, shard_rows", [(1, 100), (10, 10), (23, 5), (7, 1)])
def test_rows_come_back_in_any_order_and_as_often_as_asked(tmp_path, rows, shard_rows):
    columns = [Column(f"{d} {s}", d, s) for d in formats.DTYPES for s in ((), (2,), (3, 1, 2))]
    values, generator = values_of(columns, rows), np.random.default_rng(1)
    draft = Draft(tmp_path / "a" / "cache", rows, columns, ABOUT, shard_rows=shard_rows)
    for part in np.array_split(generator.permutation(rows), 3):
        draft.write(part, picked(values, part))
    draft.finish()
    table = Table(tmp_path / "a" / "cache")
    assert (table.about, table.rows, table.columns) == (ABOUT, rows, tuple(columns))
    for asked in (generator.integers(0, rows, 50), np.arange(rows)[::-1], np.array([], int)):
        assert_same(table.read(asked.astype("uint8")), picked(values, asked))
    table.check()


def test_a_shard_is_what_the_documentation_says(tmp_path):
    values = build(tmp_path / "cache", 11, shard_rows=4)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.name for file in files] == ["00000.kdcache", "00001.kdcache", "00002.kdcache"]
    for file, (first, count) in zip(files, [(0, 4), (4, 4), (8, 3)], strict=True):
        header, columns, _ = parsed(file)
        described = [{k: v for k, v in c.items() if k != "crc32"} for c in header.pop("columns")]
        assert described == [
            {"name": "scores", "dtype": "float16", "shape": [3]},
            {"name": "crc", "dtype": "uint32", "shape": []},
        ]
        numbers = {"rows": 11, "shards": 3, "first": first, "count": count}
        assert header == {"format": 1, "about": ABOUT, **numbers}
        assert_same(columns, picked(values, slice(first, first + count)))


@pytest.mark.parametrize("rows, sharding", [(10, {}), (10, {"shard_rows": 3}), (1000, {})])
def test_the_size_is_known_beforehand(tmp_path, rows, sharding):
    build(tmp_path / "cache", rows, **sharding)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    assert size_of(rows, COLUMNS, ABOUT, **sharding) == on_disk == Table(tmp_path / "cache").size


@pytest.mark.parametrize("shard_bytes, shards", [(10**6, 1), (100, 1), (99, 2), (30, 4), (1, 10)])
def test_shards_have_the_bytes_that_were_asked_for_and_one_row_at_least(
    tmp_path, shard_bytes, shards
):
    build(tmp_path / "cache", 10, shard_bytes=shard_bytes)
    assert len(list((tmp_path / "cache").iterdir())) == shards


def test_about_is_what_json_makes_of_it(tmp_path):
    build(tmp_path / "cache", about={"a": (1, 2.5), "ü": {"b": None}, 1: True})
    assert Table(tmp_path / "cache").about == {"a": [1, 2.5], "ü": {"b": None}, "1": True}


def test_a_table_travels_to_another_process(tmp_path, monkeypatch):
    values = build(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    table = Table("cache")
    table.read([1])
    copy = pickle.loads(pickle.dumps(table))
    monkeypatch.chdir("/")
    assert_same(copy.read([3, 1]), picked(values, [3, 1]))


def test_threads_share_a_table_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_OPEN_SHARDS", 2)
    values, failures = build(tmp_path / "cache", 60, shard_rows=6), []
    table = Table(tmp_path / "cache")

    def read(seed):
        try:
            for asked in np.random.default_rng(seed).integers(0, 60, (30, 9)):
                assert_same(table.read(asked), picked(values, asked))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(table._open) == 2


# --- building ------------------------------------------------------------------------------------


def test_a_building_goes_on_where_it_stopped(tmp_path):
    values = values_of(COLUMNS, 20)
    draft = Draft(tmp_path / "cache", 20, COLUMNS, ABOUT, shard_rows=8)
    assert draft.left == 20
    draft.write([19, 3, 7], picked(values, [19, 3, 7]))
    assert draft.left == 17 and draft.missing([3, 4, 19]).tolist() == [False, True, False]
    draft.flush()
    del draft
    again = Draft(tmp_path / "cache", 20, COLUMNS, ABOUT, shard_rows=8)
    missing = np.flatnonzero(again.missing(np.arange(20)))
    assert missing.tolist() == [row for row in range(20) if row not in (3, 7, 19)]
    with pytest.raises(ValueError, match="all its 20 rows.*all but 17"):
        again.finish()
    again.write(missing, picked(values, missing))
    assert again.left == 0
    again.finish()
    assert_same(Table(tmp_path / "cache").read(np.arange(20)), values)


@pytest.mark.parametrize("seconds, left", [(0.0, 6), (60.0, 10)])
def test_rows_count_once_they_are_on_the_disk(tmp_path, monkeypatch, seconds, left):
    monkeypatch.setattr(drafts, "_FLUSH_SECONDS", seconds)
    draft = Draft(tmp_path / "cache", 10, COLUMNS, ABOUT)
    draft.write(np.arange(4), values_of(COLUMNS, 4))
    assert draft.left == 6
    assert Draft(tmp_path / "cache", 10, COLUMNS, ABOUT).left == left


def test_rows_that_the_disk_refused_are_missing_again(tmp_path, monkeypatch):
    draft = Draft(tmp_path / "cache", 10, COLUMNS, ABOUT)
    values = values_of(COLUMNS, 10)
    draft.write(np.arange(2), picked(values, slice(2)))
    draft.flush()

    def fail(path):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "_sync", fail)
        draft.write(np.arange(2, 5), picked(values, slice(2, 5)))
        with pytest.raises(OSError, match="broken"):
            draft.flush()
    draft.flush()
    assert np.flatnonzero(draft.missing(np.arange(10))).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    draft.write(np.arange(10), values)
    draft.finish()
    assert_same(Table(tmp_path / "cache").read(np.arange(10)), values)


def test_a_row_is_written_once(tmp_path):
    first, second = (Draft(tmp_path / "cache", 10, COLUMNS, ABOUT) for _ in range(2))
    values = values_of(COLUMNS, 10)
    first.write([4], picked(values, [4]))
    first.flush()
    for draft in (first, second):
        draft.write([4], values_of(COLUMNS, 1, seed=5))
    second.write(np.arange(10), values)
    second.finish()
    # The other one finds that all is done.
    first.finish()
    assert_same(Table(tmp_path / "cache").read(np.arange(10)), values)


CHILD = """
import sys, time, types
for name in ("kdtoolkit", "kdtoolkit.cache"):  # without Keras
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [sys.argv[1] + name[len("kdtoolkit"):].replace(".", "/")]
import numpy as np
from kdtoolkit.cache import draft as drafts
from kdtoolkit.cache.format import Column
drafts._FLUSH_SECONDS = 0.0
columns = [Column("scores", "float32", (4,)), Column("number", "int32")]
draft = drafts.Draft(sys.argv[2], 400, columns, {}, shard_rows=70)
for row in map(int, sys.argv[4:]):
    if draft.missing([row])[0]:
        scores = np.arange(4, dtype="float32") + 10 * row
        draft.write([row], {"scores": scores[None], "number": np.array([-row], "int32")})
        print(row, flush=True)
        time.sleep(float(sys.argv[3]))
while draft.left:
    time.sleep(0.01)
draft.finish()
"""


def start_child(path, rows, pause):
    package = str(pathlib.Path(kd.__file__).parent)
    command = [sys.executable, "-c", CHILD, package, str(path), str(pause), *map(str, rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_child_wrote_all(path):
    found, rows = Table(path).read(np.arange(400)), np.arange(400)
    np.testing.assert_array_equal(found["number"], -rows)
    np.testing.assert_array_equal(found["scores"], 10 * rows[:, None] + np.arange(4))


def test_a_killed_process_loses_at_most_its_last_write(tmp_path):
    path, order = tmp_path / "cache", np.random.default_rng(0).permutation(400)
    reported = []
    for _ in range(2):
        child = start_child(path, order, 0.005)
        reported += [int(child.stdout.readline()) for _ in range(30)]
        child.kill()
        reported += [int(line) for line in child.communicate()[0].split()]
    assert len(set(reported)) == len(reported) < 400 and not path.exists()
    columns = [Column("scores", "float32", (4,)), Column("number", "int32")]
    draft = Draft(path, 400, columns, {}, shard_rows=70)
    assert not draft.missing(reported).any()
    assert 400 - draft.left - len(reported) in (0, 1, 2)
    last = start_child(path, order, 0)
    last.communicate()
    assert last.returncode == 0
    assert_child_wrote_all(path)


def test_two_processes_build_one_cache(tmp_path):
    children = [start_child(tmp_path / "cache", range(half, 400, 2), 0) for half in (0, 1)]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert_child_wrote_all(tmp_path / "cache")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, change",
    [
        ("rows: 10. Received: 11", {"rows": 11}),
        (r"shard_rows: 4. Received: 3", {"sharding": {"shard_rows": 3}}),
        ("columns: .*Received: ", {"columns": COLUMNS[:1]}),
        (r"about\['seed'\]: 3. Received: 4", {"about": {"model": "teacher", "seed": 4}}),
        (r"about\['seed'\]: 3. Received: 'nothing'", {"about": {"model": "teacher"}}),
        (r"about\['more'\]: 'nothing'. Received: 1", {"about": {**ABOUT, "more": 1}}),
    ],
)
def test_the_building_of_another_cache_is_refused(tmp_path, message, change):
    change = {"rows": 10, "columns": COLUMNS, "about": ABOUT, **change}
    sharding = change.pop("sharding", {"shard_rows": 4})
    Draft(tmp_path / "cache", **change, **sharding)
    with pytest.raises(ValueError, match=f"Expected {message}.*Delete .*cache.building to begin"):
        Draft(tmp_path / "cache", 10, COLUMNS, ABOUT, shard_rows=4)


def test_a_damaged_building_is_refused(tmp_path):
    building = tmp_path / "cache.building"
    for name in ("filled", "draft.json", "shards/00000.kdcache", "shards"):
        Draft(tmp_path / "cache", 10, COLUMNS, ABOUT)
        broken = building / name
        shutil.rmtree(broken) if broken.is_dir() else broken.write_bytes(b"{")
        with pytest.raises(ValueError, match="cache.building.*Delete .*cache.building to begin"):
            Draft(tmp_path / "cache", 10, COLUMNS, ABOUT)
        shutil.rmtree(building)


def test_what_exists_is_never_overwritten(tmp_path):
    build(tmp_path / "cache")
    for path in (tmp_path / "cache", tmp_path, pathlib.Path(__file__)):
        with pytest.raises(FileExistsError, match="exists already. Use another path"):
            Draft(path, 10, COLUMNS, ABOUT)


def test_a_disk_without_space_is_noticed_before_anything_is_made(tmp_path, monkeypatch):
    needed = size_of(10, COLUMNS, ABOUT) + 10
    usage, asked = collections.namedtuple("usage", "free"), []
    free = iter([needed - 1, needed])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(next(free)))
    with pytest.raises(OSError, match=f"needs {needed} bytes.*has {needed - 1} bytes") as caught:
        Draft(tmp_path / "a" / "b", 10, COLUMNS, ABOUT)
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    Draft(tmp_path / "a" / "b", 10, COLUMNS, ABOUT)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    "error, message, change",
    [
        (ValueError, "`rows` must be an integer >= 1. Received: 0", {"rows": 0}),
        (ValueError, "`rows`.*Received: True", {"rows": True}),
        (ValueError, "`shard_rows`.*Received: 2.0", {"shard_rows": 2.0}),
        (ValueError, "`shard_bytes`.*Received: 0", {"shard_bytes": 0}),
        (ValueError, r"different names, one or more. Received: \[\]", {"columns": []}),
        (ValueError, r"Received: \['crc', 'crc'\]", {"columns": COLUMNS[1:] * 2}),
        (TypeError, "`about` must be a dict of JSON. Received: 'a'", {"about": "a"}),
        (TypeError, "JSON", {"about": {"a": object()}}),
        (ValueError, "JSON", {"about": {"a": math.nan}}),
        (ValueError, "must fit into 16777216 bytes", {"about": {"a": "x" * 2**24}}),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, error, message, change):
    with pytest.raises(error, match=message):
        Draft(tmp_path / "c", **{"rows": 10, "columns": COLUMNS, "about": ABOUT, **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("name must be a text. Received: ''", ("", "uint8")),
        ("dtype must be one of.*Received: 'float64'", ("a", "float64")),
        ("dtype must be one of.*Received: 'object'", ("a", np.dtype(object))),
        (r"sizes >= 1. Received: \(0,\)", ("a", "uint8", (0,))),
        (r"sizes >= 1. Received: \(True,\)", ("a", "uint8", (True,))),
        ("sizes >= 1. Received: 3", ("a", "uint8", 3)),
        ("up to 31 sizes", ("a", "uint8", (1,) * 32)),
    ],
)
def test_columns_that_make_no_sense_are_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        Column(*arguments)


BAD_ROWS = [
    ("from 0 to 9. Received: -1 to 3", [3, -1]),
    ("from 0 to 9. Received: 3 to 10", [3, 10]),
    ("from 0 to 9. Received: 0 to 18446744073709551615", np.array([0, 2**64 - 1], "uint64")),
    ("1-D array of integers. Received: .*float64", [1.0]),
    ("1-D array of integers. Received: .*bool", [True]),
    (r"1-D array of integers. Received: .*shape \(\)", 3),
    (r"1-D array of integers. Received: .*shape \(1, 2\)", [[1, 2]]),
]


@pytest.mark.parametrize("message, rows", BAD_ROWS)
def test_rows_that_a_table_has_not_are_refused(tmp_path, message, rows):
    draft = Draft(tmp_path / "draft", 10, COLUMNS, ABOUT)
    build(tmp_path / "cache")
    values = values_of(COLUMNS, 2)
    calls = [draft.missing, lambda rows: draft.write(rows, values), Table(tmp_path / "cache").read]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(rows)
    assert draft.left == 10


@pytest.mark.parametrize(
    "message, rows, change",
    [
        ("must differ", [3, 3], {}),
        (r"columns \['crc', 'scores'\]. Received: .*'more'", [1, 2], {"more": "int64"}),
        (r"'scores' must be float16 of shape \(2, 3\).*float32", [1, 2], {"scores": "float32"}),
        (r"'crc' must be uint32 of shape \(2,\).*int64", [1, 2], {"crc": "int64"}),
        (r"'scores' must be float16 of shape \(1, 3\).*\(2, 3\)", [1], {}),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, message, rows, change):
    draft = Draft(tmp_path / "draft", 10, COLUMNS, ABOUT)
    values = values_of(COLUMNS, 2)
    for name, dtype in change.items():
        values[name] = np.zeros((2, 3) if name == "scores" else 2, dtype)
    with pytest.raises(ValueError, match=message):
        draft.write(rows, values)
    assert draft.left == 10


def test_values_that_are_no_dict_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a dict of the columns.*Received: list"):
        Draft(tmp_path / "draft", 10, COLUMNS, ABOUT).write([1], [1])


def test_a_cache_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no cache at .*cache$"):
        Table(tmp_path / "cache")
    Draft(tmp_path / "cache", 10, COLUMNS, ABOUT)
    with pytest.raises(FileNotFoundError, match="isn't finished.*kd.cache_teacher"):
        Table(tmp_path / "cache")
    for path in (tmp_path, pathlib.Path(__file__)):
        with pytest.raises(ValueError, match="isn't a cache. Expected a directory"):
            Table(path)


# --- what is damaged -----------------------------------------------------------------------------

DAMAGED = "is damaged: Expected .*Received: .*Build the cache again"


def assert_refused(path):
    with pytest.raises(ValueError, match=DAMAGED):
        table = Table(path)
        table.read(np.arange(table.rows))


def test_no_flipped_bit_gives_a_wrong_row(tmp_path):
    values = build(tmp_path / "cache", shard_rows=6)
    file = tmp_path / "cache" / "00001.kdcache"
    header, _, places = parsed(file)
    whole, generator = file.read_bytes(), np.random.default_rng(0)
    checked = {*range(min(places["scores"])), *places["scores"], *places["crc"]}
    assert len(checked) < len(whole) and header["first"] == 6
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << generator.integers(8)
        file.write_bytes(broken)
        if place in checked:
            assert_refused(tmp_path / "cache")
        else:
            assert_same(Table(tmp_path / "cache").read(np.arange(10)), values)


def test_no_other_length_is_read(tmp_path):
    build(tmp_path / "cache", shard_rows=6)
    for index in (0, 1):
        file = tmp_path / "cache" / f"{index:05d}.kdcache"
        whole = file.read_bytes()
        lengths = [*range(0, len(whole), 13), len(whole) - 64, len(whole) - 1]
        for broken in [*(whole[:length] for length in lengths), whole + b"\0", whole + bytes(64)]:
            file.write_bytes(broken)
            assert_refused(tmp_path / "cache")
        file.write_bytes(whole)
    Table(tmp_path / "cache").check()


def test_a_damaged_shard_is_noticed_when_it_is_touched(tmp_path):
    values = build(tmp_path / "cache", shard_rows=6)
    file = tmp_path / "cache" / "00001.kdcache"
    broken = bytearray(file.read_bytes())
    broken[min(parsed(file)[2]["crc"])] ^= 1
    file.write_bytes(broken)
    table = Table(tmp_path / "cache")
    assert_same(table.read([5, 0]), picked(values, [5, 0]))
    for call in (lambda: table.read([0, 6]), table.check):
        with pytest.raises(ValueError, match=f"00001.kdcache {DAMAGED[:20]}.*column 'crc'"):
            call()


def test_shards_that_are_lost_or_swapped_are_noticed(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    values = build(one, 12, shard_rows=4)
    build(other, 12, about={**ABOUT, "seed": 4}, shard_rows=4)
    name, last = "00001.kdcache", "00002.kdcache"
    kept = (one / name).read_bytes()
    for foreign in ((other / name).read_bytes(), (one / last).read_bytes()):
        (one / name).write_bytes(foreign)
        assert_refused(one)
    (one / name).write_bytes(kept)
    table = Table(one)
    (one / last).rename(one / "elsewhere")
    assert_refused(one)
    assert_same(table.read([0]), picked(values, [0]))
    with pytest.raises(ValueError, match=DAMAGED):
        table.read([11])


def with_text(path, change):
    """Writes another header, with its right length and checksum."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    text = change(data[16 : 16 + length])
    text += b" " * (-(16 + len(text)) % 64)
    start = struct.pack("<8sII", b"KDCACHE1", len(text), zlib.crc32(text))
    path.write_bytes(start + text + data[16 + length :])


@pytest.mark.parametrize(
    "change",
    [
        *({"count": value} for value in (-1, 0, True, 10.0, "10", None, 10**18, 9, 10**4000)),
        *({"rows": value} for value in (0, 9, 11, True, 10**30)),
        *({"shards": value} for value in (0, 2, True, 10**30)),
        *({"first": value} for value in (-1, 1, False, 10**30)),
        *({"format": value} for value in (0, 2, True, None)),
        *({"about": value} for value in ([], None, {"a": math.nan})),
        *({"columns": value} for value in ([], {}, [1], [{}], None)),
        {"more": 1},
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, change):
    build(tmp_path / "cache")
    file = tmp_path / "cache" / "00000.kdcache"
    with_text(file, lambda text: json.dumps({**json.loads(text), **change}).encode())
    assert_refused(tmp_path / "cache")


@pytest.mark.parametrize(
    "change",
    [
        *({"name": value} for value in ("", 1, "crc")),
        *({"dtype": value} for value in ("float64", "object", "O", 3, None, "uint8")),
        *({"shape": value} for value in ([], [-3], [True], 3, [1] * 32)),
        *({"shape": value} for value in ([2**40] * 2, [10**4000] * 9)),
        *({"crc32": value} for value in (-1, 2**32, 1.5, True, "1", None)),
        {"more": 1},
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, change):
    build(tmp_path / "cache")

    def changed(text):
        header = json.loads(text)
        header["columns"][0] |= change
        return json.dumps(header).encode()

    with_text(tmp_path / "cache" / "00000.kdcache", changed)
    assert_refused(tmp_path / "cache")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff\xfe{}",
        b"1" * 5000,
        b"[" * 100000,
        b'{"a":' * 100000,
        *(b'{"about": ' + b"[" * n + b"]" * n + b"}" for n in (900, 3000)),
    ],
)
def test_headers_that_are_no_header_are_refused(tmp_path, text):
    build(tmp_path / "cache")
    with_text(tmp_path / "cache" / "00000.kdcache", lambda _: text)
    assert_refused(tmp_path / "cache")


@pytest.mark.parametrize("valid_checksum", [False, True])
def test_random_damage_of_headers_never_gives_a_wrong_row(tmp_path, valid_checksum):
    values = build(tmp_path / "cache", shard_rows=6)
    file = tmp_path / "cache" / "00000.kdcache"
    whole, generator = file.read_bytes(), np.random.default_rng(2)
    start = min(parsed(file)[2]["scores"])
    refused = 0

    def damage(data):
        data = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            data[place] = generator.choice(list(b'0123456789-.,:"[]{}etrua \x00\xff'))
        return bytes(data)

    for _ in range(200):
        file.write_bytes(whole)
        if valid_checksum:
            with_text(file, damage)
        else:
            file.write_bytes(damage(whole[:start]) + whole[start:])
        try:
            table = Table(tmp_path / "cache")
            found = table.read(np.arange(10))
        except ValueError as error:
            assert "is damaged: Expected" in str(error)
            refused += 1
            continue
        for array, expected in zip(found.values(), values.values(), strict=True):
            assert array.tobytes() == expected.tobytes()
    assert refused > 100
