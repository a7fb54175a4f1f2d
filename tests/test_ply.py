"""Splat PLY files: round trips, other people's layouts, and files that must be refused."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from backend import ply as backend_ply
from blender_addon import atomic_file, ply

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lgm" / "ply"


def some_splats(count: int = 50, degree: int = 0, seed: int = 0) -> ply.SplatArrays:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    return ply.SplatArrays(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=rng.uniform(1e-4, 2, size=(count, 3)).astype(np.float32),
        opacities=rng.uniform(0.001, 0.999, size=count).astype(np.float32),
        sh=rng.normal(size=(count, (degree + 1) ** 2, 3)).astype(np.float32),
    )


def same(a: ply.SplatArrays, b: ply.SplatArrays, atol: float = 2e-6) -> None:
    for name in a._fields:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=2e-6, atol=atol, err_msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_round_trip(tmp_path: Path, degree: int, count: int) -> None:
    splats = some_splats(count, degree)
    ply.write(tmp_path / "a.ply", splats)
    same(ply.read(tmp_path / "a.ply"), splats)


def test_stored_values_by_hand(tmp_path: Path) -> None:
    sh = np.zeros((1, 4, 3), np.float32)
    sh[0, :, 0], sh[0, :, 1], sh[0, :, 2] = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]
    one = ply.SplatArrays(
        means=np.array([[1, 2, 3]], np.float32),
        quats=np.array([[0, 1, 0, 0]], np.float32),
        scales=np.array([[1, np.e, np.e**2]], np.float32),
        opacities=np.array([0.5], np.float32),
        sh=sh,
    )
    ply.write(tmp_path / "a.ply", one)
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property")]
    stored = dict(zip(names, np.frombuffer(body, "<f4").tolist(), strict=True))
    assert [stored[n] for n in ("x", "y", "z")] == [1, 2, 3]
    assert [stored[f"f_dc_{i}"] for i in range(3)] == [1, 5, 9]
    assert [stored[f"f_rest_{i}"] for i in range(9)] == [2, 3, 4, 6, 7, 8, 10, 11, 12]  # a channel after the other
    assert stored["opacity"] == 0  # logit of one half
    np.testing.assert_allclose([stored[f"scale_{i}"] for i in range(3)], [0, 1, 2], atol=1e-6)
    assert [stored[f"rot_{i}"] for i in range(4)] == [0, 1, 0, 0]


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_other_layouts(tmp_path: Path, encoding: str, kind: str) -> None:
    """Any order of properties, normals or not, an element before, lists behind, CRLF in the header."""
    splats = some_splats(7, 1)
    stored = {name: column for name, column in zip(stored_names(1), ply._deactivate(splats).T, strict=True)}
    stored |= {name: np.zeros(7, np.float32) for name in ("nx", "ny", "nz")}
    names = sorted(stored, reverse=True)
    end = "\r\n" if encoding != "ascii" else "\n"
    lines = ["ply", f"format {encoding} 1.0", "comment made by hand", "element camera 2", "property uchar id"]
    lines += ["element vertex 7", *(f"property {kind} {name}" for name in names)]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    order = ">" if "big" in encoding else "<"
    table = np.stack([stored[name] for name in names], axis=1).astype(order + ("f4" if kind == "float" else "f8"))
    if encoding == "ascii":
        rows = [" ".join(f"{value:.9g}" for value in row) for row in table]
        body = ("\n".join(["1", "2", *rows, "3 0 1 2"]) + "\n").encode()
    else:
        body = b"\x01\x02" + table.tobytes() + b"\x03" + bytes(12)
    (tmp_path / "a.ply").write_bytes((end.join(lines) + end).encode() + body)
    same(ply.read(tmp_path / "a.ply"), splats, atol=1e-5)


def stored_names(degree: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1))]
    return [*ply.POSITION, *ply.BASE_COLOUR, *rest, "opacity", *ply.SCALE, *ply.ROTATION]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden vectors are not beside the checkout")
def test_golden_file_of_lgm(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    want = load_file(str(GOLDEN / "gaussians.safetensors"))["loaded_back"]
    got = ply.read(GOLDEN / "compatible.ply")
    np.testing.assert_allclose(got.means, want[:, 0:3], atol=2e-6)
    np.testing.assert_allclose(got.opacities, want[:, 3], atol=2e-6)
    np.testing.assert_allclose(got.scales, want[:, 4:7], atol=2e-6)
    np.testing.assert_allclose(got.quats, want[:, 7:11], atol=2e-6)
    np.testing.assert_allclose(0.5 + 0.28209479177387814 * got.sh[:, 0], want[:, 11:14], atol=2e-6)
    ply.write(tmp_path / "again.ply", got)
    ours = (tmp_path / "again.ply").read_bytes().partition(b"end_header\n")[2]
    theirs = (GOLDEN / "compatible.ply").read_bytes().partition(b"end_header\n")[2]
    np.testing.assert_allclose(np.frombuffer(ours, "<f4"), np.frombuffer(theirs, "<f4"), rtol=1e-4, atol=2e-4)


def test_gaussians_round_trip(tmp_path: Path) -> None:
    gaussians = backend_ply.from_arrays(some_splats(20, 2))
    backend_ply.save(gaussians, tmp_path / "a.ply")
    same(backend_ply.to_arrays(backend_ply.load(tmp_path / "a.ply")), some_splats(20, 2))


def test_extreme_values_survive(tmp_path: Path) -> None:
    splats = some_splats(3)
    splats.opacities[:] = [0, 1, 0.5]
    splats.scales[0] = [0, 1e-20, 1000]
    ply.write(tmp_path / "a.ply", splats)
    back = ply.read(tmp_path / "a.ply")
    np.testing.assert_allclose(back.opacities, [1e-6, 1 - 1e-6, 0.5], atol=1e-7)
    np.testing.assert_allclose(back.scales[0], [0, 1e-20, 1000], rtol=1e-4, atol=1e-29)


def written(tmp_path: Path, *changes: tuple[bytes, bytes]) -> Path:
    ply.write(tmp_path / "a.ply", some_splats(5, 1))
    content = (tmp_path / "a.ply").read_bytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    (tmp_path / "a.ply").write_bytes(content)
    return tmp_path / "a.ply"


REFUSED = {
    "no PLY file": (b"ply\n", b"obj\n"),
    "no 'end_header'": (b"end_header", b"und_header"),
    "is none of": (b"binary_little_endian", b"binary_mixed_endians"),
    "unknown type": (b"property float x", b"property qloat x"),
    "cannot read the header line": (b"element vertex 5", b"element vertex -5"),
    "no element 'vertex'": (b"element vertex 5", b"element vortex 5"),
    "no property opacity": (b"float opacity", b"float capacity"),
    "no property scale_2": (b"float scale_2", b"float skale_2"),
    "f_rest_0": (b"float f_rest_3", b"float g_rest_3"),
    "named twice": (b"float y", b"float x"),
    "holds a list": (b"property float x", b"property list uchar float x"),
    "packed_position": (b"property float x", b"property uint packed_position\nproperty float x"),
    "promises": (b"element vertex 5", b"element vertex 4000000000000"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_damaged_header_is_refused(tmp_path: Path, message: str) -> None:
    path = written(tmp_path, REFUSED[message])
    with pytest.raises(ply.PlyError, match="a.ply.*" + message):
        ply.read(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = written(tmp_path).read_bytes()
    for length in [*range(0, len(content) - 1, 7), len(content) - 1]:
        (tmp_path / "b.ply").write_bytes(content[:length])
        with pytest.raises(ply.PlyError):
            ply.read(tmp_path / "b.ply")


def test_mutations_are_read_or_refused(tmp_path: Path) -> None:
    """200 files with random bytes changed: either splats with finite values, or a PlyError, nothing else."""
    content = written(tmp_path).read_bytes()
    rng = np.random.default_rng(3)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), 6):
            changed[at] = rng.integers(0, 256)
        (tmp_path / "b.ply").write_bytes(bytes(changed))
        try:
            splats = ply.read(tmp_path / "b.ply")
        except ply.PlyError:
            outcomes["refused"] += 1
        else:
            assert all(np.isfinite(values).all() for values in splats)
            outcomes["read"] += 1
    assert outcomes["read"] > 0 and outcomes["refused"] > 20


def test_text_that_is_no_number_is_refused(tmp_path: Path) -> None:
    lines = ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {n}" for n in stored_names(0))]
    row = ["0"] * 13 + ["zero"]
    (tmp_path / "a.ply").write_text("\n".join([*lines, "end_header", " ".join(row)]) + "\n")
    with pytest.raises(ply.PlyError, match="cannot be read as numbers"):
        ply.read(tmp_path / "a.ply")


@pytest.mark.parametrize("field", ["means", "scales", "sh"])
def test_values_that_are_not_finite_are_reported(tmp_path: Path, field: str) -> None:
    splats = some_splats(9)
    getattr(splats, field)[4:6] = np.nan
    with pytest.raises(ply.PlyError, match=f"2 splats have {field} that are not finite, first splat 4"):
        ply.write(tmp_path / "a.ply", splats)
    assert not list(tmp_path.iterdir())


def test_nan_in_a_file_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-4] + np.array(np.nan, "<f4").tobytes())
    with pytest.raises(ply.PlyError, match="1 splats have quats that are not finite, first splat 4"):
        ply.read(path)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    splats = some_splats(9)
    with pytest.raises(ply.PlyError, match="quats must have shape"):
        ply.write(tmp_path / "a.ply", splats._replace(quats=splats.quats[:8]))
    with pytest.raises(ply.PlyError, match="sh must have shape"):
        ply.write(tmp_path / "a.ply", splats._replace(sh=np.zeros((9, 5, 3), np.float32)))


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ply.write(tmp_path / "a.ply", some_splats(5))
    before = (tmp_path / "a.ply").read_bytes()

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        ply.write(tmp_path / "a.ply", some_splats(50))
    assert (tmp_path / "a.ply").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbour file is a link to a device whose writes fail as on a full disk."""
    monkeypatch.setattr(atomic_file.os, "getpid", lambda: 1)
    (tmp_path / ".a.ply.1.part").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        ply.write(tmp_path / "a.ply", some_splats(5000))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
