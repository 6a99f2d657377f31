"""Does no clip of radar images span a gap in time, and is the gap said?"""

from __future__ import annotations

import re
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from layouts import noise
from own_data import refusal
from PIL import Image

from motionrnn_ext.data import FrameSequences, open_clips
from motionrnn_ext.data.times import gaps

START = datetime(2017, 5, 9, 23, 40)


def stamps(form: str, steps: list[int]) -> list[str]:
    """Names of moments that lie so many minutes apart, past midnight."""
    moments = [START]
    for step in steps:
        moments.append(moments[-1] + timedelta(minutes=step))
    return [moment.strftime(form) for moment in moments]


@pytest.mark.parametrize(
    "form",
    [
        "%Y%m%d%H%M",
        "%Y%m%d_%H%M",
        "%Y-%m-%dT%H:%M:%S",
        "cappi_2_%Y%m%d%H%M%S",
        "FMI-%Y.%m.%d-%H.%M_dbz",
        "%Y%m%dT%H%MZ",
        "%s",
        "%Y%m%d_%H%M_99",
        "%Y%m%d_%H%M 64x64",
        "%y%m%d%H%M",
        "RAD_%y%m%d_%H%M_x",
    ],
)
def test_dates_with_times(form: str) -> None:
    assert gaps(stamps(form, [5] * 30)) == []
    assert gaps(stamps(form, [5, 5, 5, 15, 5, 5, 5])) == [4]
    assert gaps(stamps(form, [5, 5, 7, 5, 8, 5, 5, 1440])) == [5, 8]  # 7 is not longer than 1.5 times 5
    assert gaps(stamps(form, [6, 6, 9, 6, 6])) == []  # 1.5 times exactly


@pytest.mark.parametrize("form", ["%Y%m%d_%H", "%Y-%m-%d_%H", "%Y%m%d%H"])
def test_dates_with_hours(form: str) -> None:
    assert gaps(stamps(form, [60] * 30)) == []
    assert gaps(stamps(form, [60, 60, 60, 180, 60, 60])) == [4]


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y-%m-%d", "day_%Y.%m.%d_mean"])
def test_days(form: str) -> None:
    assert gaps(stamps(form, [1440] * 60)) == []
    assert gaps(stamps(form, [1440] * 25 + [2880] + [1440] * 25)) == [26]


@pytest.mark.parametrize("form", ["%H%M%S", "%H-%M", "%H_%M_00", "frame_%H:%M:%S"])
def test_times_of_day_in_other_forms(form: str) -> None:
    # An hour later, so that midnight is not passed.
    hour = [50, *[5] * 30]
    assert gaps(stamps(form, hour)[1:]) == []
    assert gaps(stamps(form, [*hour, 15, 5, 5])[1:]) == [31]


@pytest.mark.parametrize(("odd", "why"), [("zz_mean", "no date"), ("20170509_2350 (1)", "no later date")])
def test_an_odd_name_among_dates_is_said(odd: str, why: str) -> None:
    names = sorted([*stamps("%Y%m%d_%H%M", [5, 5, 5, 15, 5, 5, 5]), odd])
    with pytest.warns(
        UserWarning, match=rf"'{re.escape(odd)}' has {why}.*, so that gaps in time are not found"
    ):
        assert gaps(names) == []
    # Counts within a day are no odd dates.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gaps([f"20170509_{i:03d}" for i in range(30) if i != 20]) == [20]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["0", "1", "2", "3", "9", "10"], [4]),
        ([f"frame_{i:04d}" for i in range(120)], []),  # past 0060, which is no time of day
        ([f"{i:04d}" for i in range(0, 2000, 50)], []),  # 0050, 0100: a count, and steps of 50 or 10 minutes
        ([f"{i:04d}" for i in (*range(40), 45, 46)], [40]),
        (["2250", "2255", "2300", "2305", "2310"], []),  # times of day
        (["2250", "2255", "2300", "2330", "2335"], [3]),
        # The next day, where times of day go on.
        (["20170509_1200", "20170509_1205", "20170509_1210", "20170510_1215", "20170510_1220"], [3]),
        (["1", "2", "2 (copy)", "3"], []),  # the same time twice: these names say nothing
        (["a", "b", "c"], []),
        (["a_1", "b"], []),
        (["b_9", "c_1"], []),
        ([], []),
        (["7"], []),
        (["7", "12"], []),  # one step is the usual one
    ],
)
def test_other_names(names: list[str], wanted: list[int]) -> None:
    assert gaps(names) == wanted


def write(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(noise(16, 16)).save(folder / f"{name}.png")


def test_clips_lie_on_one_side_of_a_gap(tmp_path: Path) -> None:
    write(tmp_path / "train/a", stamps("%Y%m%d_%H%M", [5, 5, 5, 5, 30, 5, 5, 5, 5, 5]))  # 5 and 6 frames
    write(tmp_path / "train/b", stamps("%Y%m%d_%H%M", [10] * 7))  # another cadence
    write(tmp_path / "test/c", stamps("%Y%m%d_%H%M", [5] * 7))
    options = {"n_frames": 4, "image_size": (16, 16)}
    said = (
        r"1 of the steps in time between frames are longer than 1\.5 times the usual one; no clip spans such a gap: "
        r"there are 4 clips for train, without this rule there would be 4"
    )
    with pytest.warns(UserWarning, match=said) as found:
        data = FrameSequences("train", tmp_path, **options)
        open_clips("frames", "train", root=tmp_path, **options)
    assert [warning.filename for warning in found] == [__file__] * 2
    spans = [sequence.frames[first].stem[-4:] for sequence, first in data.clips[:2]]
    assert spans == ["2340", "0030"]
    # The span of a clip is what counts, here 7 frames.
    with pytest.warns(UserWarning, match="1 clips for train, without this rule there would be 2"):
        assert len(FrameSequences("train", tmp_path, n_frames=3, image_size=(16, 16), stride=3)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(FrameSequences("test", tmp_path, **options)) == 2
    write(tmp_path / "val/d", stamps("%Y%m%d_%H%M", [5, 5, 30, 5]))
    refusal(
        lambda: FrameSequences("val", tmp_path, **options),
        "there are 0 clips for val, without this rule there would be 1; 4 frames need 4",
    )
