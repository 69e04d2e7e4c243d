import warnings

import numpy as np
import pytest

from sonde.errors import SondeWarning
from sonde.learn.splitting import draw, make_folds, normalised, validation_folds
from sonde.learn.targets import encode


def _texts(n):
    return [f"text number {i}" for i in range(n)]


def test_normalised_texts_read_the_same():
    assert normalised("  Straße\tＡ\n b ") == normalised("STRASSE a B") == "strasse a b"
    assert normalised("a lone \ud800 surrogate") == "a lone \ud800 surrogate"


def test_every_row_is_held_out_once_and_classes_are_spread_evenly():
    labels = ["a"] * 103 + ["b"] * 41 + ["c"] * 5
    folds = make_folds(_texts(149), encode(labels), seed=0)
    assert folds.n_folds == 5
    assert folds.trainable.all()
    table = np.array([[(folds.held == k)[np.array(labels) == c].sum() for k in range(5)] for c in "abc"])
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all()
    assert table.sum(axis=0).max() - table.sum(axis=0).min() <= 1


def test_rows_of_fold_0_calibrate_and_do_not_choose():
    folds = make_folds(_texts(50), encode(["a", "b"] * 25), seed=0)
    assert (folds.conformal == (folds.held == 0)).all()
    assert (folds.choosing == (folds.held > 0)).all()
    for k in range(5):
        assert not (folds.train(k) & folds.held_out(k)).any()
        assert (folds.train(k) | folds.held_out(k)).all()


def test_texts_that_read_the_same_share_a_fold_even_with_other_labels():
    base = [f"Item {i % 40}" for i in range(120)]
    texts = [text.upper() if i % 3 else f" {text}  " for i, text in enumerate(base)]
    labels = np.random.default_rng(0).choice(["a", "b"], size=120).tolist()
    held = make_folds(texts, encode(labels), seed=1).held
    for text in set(base):
        assert len({held[i] for i in range(120) if base[i] == text}) == 1


def test_folds_depend_on_the_seed_and_on_nothing_else():
    targets = encode(["a", "b", "b"] * 30)
    one, same, other = (make_folds(_texts(90), targets, seed=seed).held for seed in (3, 3, 4))
    assert (one == same).all()
    assert (one != other).any()


def test_repeating_rows_changes_no_other_rows_fold():
    rng = np.random.default_rng(0)
    texts, labels = _texts(97), rng.choice(["a", "b", "c"], size=97, p=[0.6, 0.3, 0.1])
    once = make_folds(texts, encode(labels), seed=0).held
    repeats = np.repeat(np.arange(97), rng.integers(1, 4, size=97))
    again = make_folds([texts[i] for i in repeats], encode(labels[repeats]), seed=0).held
    assert (again == once[repeats]).all()


def test_classes_with_fewer_texts_than_folds_always_train():
    labels = ["a"] * 40 + ["b"] * 40 + ["rare"] * 4 + ["twice"] * 8
    texts = _texts(84) + ["the same", "The same"] * 4
    with pytest.warns(
        SondeWarning, match="2 classes have fewer different texts than the 5 folds.*'rare', 'twice'"
    ) as w:
        folds = make_folds(texts, encode(labels), seed=0)
    assert (folds.held[80:] == -1).all()
    assert (folds.held[:80] >= 0).all()
    assert all(folds.train(k)[80:].all() for k in range(5))
    assert (w[0].message.code, w[0].message.count) == ("rare_classes", 2)


def test_a_text_that_also_carries_a_rare_class_is_never_held_out():
    labels = ["a"] * 20 + ["b"] * 20 + ["rare"]
    texts = [*_texts(40), "Text NUMBER 7"]
    with pytest.warns(SondeWarning, match="'rare'"):
        folds = make_folds(texts, encode(labels), seed=0)
    assert np.flatnonzero(folds.held == -1).tolist() == [7, 40]


def test_few_rows_per_class_get_fewer_folds():
    with pytest.warns(SondeWarning, match="uses 3 folds, not 5"):
        folds = make_folds(_texts(30), encode(list(range(10)) * 3), seed=0)
    assert folds.n_folds == 3
    assert sorted(set(folds.held)) == [0, 1, 2]


def test_one_row_per_class_leaves_nothing_to_choose_on():
    with pytest.warns(SondeWarning, match="No rows can be held out") as caught:
        folds = make_folds(_texts(6), encode(list(range(6))), seed=0)
    assert caught[0].message.code == "no_folds"
    assert folds.n_folds == 0
    assert (folds.held == -1).all()
    assert not folds.choosing.any()
    assert folds.trainable.all()


def test_every_fold_of_multilabel_data_trains_on_every_label():
    rng = np.random.default_rng(0)
    matrix = (rng.random((200, 8)) < np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04, 0.03])).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        folds = make_folds(_texts(200), encode(matrix), seed=0)
    for k in range(folds.n_folds):
        assert matrix[folds.train(k)].any(axis=0).all()
    rarest = matrix.sum(axis=0).argmin()
    counts = [matrix[folds.held_out(k)][:, rarest].sum() for k in range(folds.n_folds)]
    assert max(counts) - min(counts) <= 1
    assert matrix[~matrix.any(axis=1)].shape[0] > 0  # rows without labels are dealt as well
    assert (folds.held >= 0).mean() > 0.9


def test_rows_of_a_group_are_held_out_together_and_classes_are_spread_evenly():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 9, size=60)))
    labels = np.where(rng.random(len(groups)) < 0.3, "b", "a")
    folds = make_folds(_texts(len(groups)), encode(labels.tolist()), seed=0, groups=groups)
    assert folds.n_folds == 5 and (folds.held >= 0).all()
    assert all(len(set(folds.held[groups == group].tolist())) == 1 for group in range(60))
    shares = [np.mean(labels[folds.held == fold] == "b") for fold in range(5)]
    sizes = np.bincount(folds.held)
    assert max(shares) - min(shares) < 0.1 and sizes.max() < 1.5 * sizes.min()


def test_a_text_that_stands_in_two_groups_joins_them():
    texts = [*_texts(40), "TEXT number 0"]
    groups = np.array([*range(20), *range(20), 7])  # text 0 of group 0 also stands in group 7
    held = make_folds(texts, encode(["a", "b"] * 20 + ["a"]), seed=0, groups=groups).held
    assert len(set(held[[0, 20, 7, 27, 40]].tolist())) == 1


def test_groups_of_one_text_each_leave_every_class_in_every_fold():
    targets = encode(["a", "b", "b"] * 30)
    folds = make_folds(_texts(90), targets, seed=3, groups=np.arange(90))
    table = np.array([[(folds.held == k)[targets.indicator[:, c] > 0].sum() for k in range(5)] for c in range(2)])
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all()


def test_a_class_in_fewer_groups_than_folds_always_trains():
    labels = ["a", "b"] * 20 + ["c"] * 20
    groups = np.array([*range(40), *(40 + row % 2 for row in range(20))])
    with pytest.warns(SondeWarning, match="1 classes have fewer different texts"):
        folds = make_folds(_texts(60), encode(labels), seed=0, groups=groups)
    assert (folds.held[40:] == -1).all() and (folds.held[:40] >= 0).all()


def test_a_validation_set_is_held_out_whole_and_half_of_it_calibrates():
    labels = ["a", "b"] * 20 + ["a"] * 10 + ["b"] * 6
    folds = validation_folds(40, encode(labels), seed=0)
    assert folds.n_folds == 1
    assert (folds.held[:40] == -1).all() and (folds.held[40:] == 0).all()
    assert (folds.train(0) == folds.trainable).all()
    assert folds.trainable.sum() == 40
    assert folds.conformal[40:50].sum() == 5 and folds.conformal[50:].sum() == 3
    assert not folds.conformal[:40].any()
    assert (folds.choosing[40:] != folds.conformal[40:]).all()


def test_validation_texts_that_read_the_same_choose_together_or_calibrate_together():
    texts = [f"text {i}" for i in range(40)] + [f"{blank}Text {40 + i}" for i in range(30) for blank in ("", " ")]
    folds = validation_folds(40, encode(["a", "b"] * 50), 0, texts)
    assert (folds.conformal[40::2] == folds.conformal[41::2]).all()
    assert 12 <= folds.conformal[40::2].sum() <= 18


def test_a_sample_keeps_the_validation_rows_that_choose():
    labels = ["a", "b"] * 5000 + ["a", "b"] * 30
    folds = validation_folds(10_000, encode(labels), 0)
    drawn = draw(encode(labels), folds, 400, 0)
    assert len(drawn) == 400
    assert folds.choosing[drawn].sum() == folds.choosing.sum() == 30 and not folds.conformal[drawn].any()
    many = draw(encode(labels), validation_folds(60, encode(labels), 0), 400, 0)
    assert len(many) == 260 and (many < 60).sum() == 60  # all that train, and half of the sample


def test_some_of_the_folds_hold_out_what_they_did() -> None:
    folds = make_folds([f"text {i}" for i in range(200)], encode(["a", "b"] * 100), seed=0)
    some = folds.only([3, 1])
    assert (
        some.n_folds == 2 and (some.held_out(0) == folds.held_out(3)).all() and (some.train(1) == folds.train(1)).all()
    )
    others = ~(folds.held_out(3) | folds.held_out(1))
    assert (some.held[others] == -1).all() and (some.choosing == (folds.choosing & ~others)).all()
    assert folds.only([]).n_folds == 0 and (folds.only([]).held == -1).all()
