from onnxprune.storage.report import PackReport, StoredWeight

PACKED = StoredWeight("a", "packed", 400, 120)
DENSE = StoredWeight("b", "dense", 400, 400, "why")


def test_by_name() -> None:
    report = PackReport((PACKED, DENSE))
    assert report.by_name("b") is DENSE
    assert report.by_name("c") is None


def test_changed() -> None:
    assert PackReport((PACKED, DENSE)).changed == (PACKED,)
    assert PackReport(()).changed == ()
