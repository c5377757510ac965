import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbin import data, data_files
from fastbin.data import (
    Standardizer,
    check_inputs,
    check_labels,
    from_arrays,
    load_dataset,
    split_validation,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The sets that come with scikit-learn


@pytest.mark.parametrize(
    ("name", "features", "classes", "samples", "pixels", "label"),
    [("digits", 64, 10, 1797, True, 0), ("breast_cancer", 30, 2, 569, False, 0)],
)
def test_bundled_sets(name, features, classes, samples, pixels, label):
    dataset = load_dataset(name)
    assert (dataset.name, dataset.features, dataset.classes) == (name, features, classes)
    assert len(dataset.x_train) + len(dataset.x_test) == samples
    assert dataset.x_train.shape == (len(dataset.y_train), features) and dataset.x_test.dtype == torch.float32
    assert dataset.y_train.dtype == torch.int64 and dataset.y_train.unique().tolist() == list(range(classes))
    assert dataset.pixels is pixels and dataset.labels[0] == label
    share = [part.bincount() / len(part) for part in (dataset.y_train, dataset.y_test)]
    torch.testing.assert_close(share[0], share[1], atol=0.01, rtol=0)


def test_seed_decides_the_split():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.x_test, again.x_test) and torch.equal(first.y_train, again.y_train)
    assert not torch.equal(first.x_test, other.x_test)


@pytest.mark.parametrize(("name", "close"), [("minst", "mnist"), ("CIFAR10", "cifar10"), ("digit", "digits")])
def test_unknown_name(name, close):
    with pytest.raises(ValueError, match=f"expected digits, .*did you mean {close}"):
        load_dataset(name)


def test_unknown_name_like_no_other():
    with pytest.raises(ValueError, match=r"unknown data set 'qqq': expected digits, .*\.npz$"):
        load_dataset("qqq")


# A user's own arrays


def test_from_arrays_keeps_samples_together():
    x = torch.arange(50.0)[:, None] * torch.ones(3)
    dataset = from_arrays(x, [str(i % 5) for i in range(50)])
    for inputs, classes in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert torch.equal(inputs[:, 0] % 5, classes.float())
    together = torch.cat([dataset.x_train, dataset.x_test])[:, 0]
    assert torch.equal(together.sort().values, x[:, 0]) and len(dataset.x_test) == 10
    assert dataset.labels == ("0", "1", "2", "3", "4") and dataset.name == "arrays"


def test_single_sample_of_a_class():
    with pytest.raises(ValueError, match="class 'rare' has 1 sample; a stratified split needs at least 2"):
        from_arrays(np.zeros((10, 2)), ["common"] * 9 + ["rare"])


def test_too_few_samples_to_split():
    with pytest.raises(ValueError, match="4 samples split into 3 and 1 are too few for 2 classes"):
        from_arrays(np.zeros((4, 2)), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("x", "pixels"),
    [
        (np.zeros((10, 2, 2), np.uint8), True),
        (torch.zeros(10, 3, 2, 2, dtype=torch.uint8), True),
        (np.zeros((10, 4), np.uint8), False),
        (np.zeros((10, 2, 2)), False),
        ([[0, 1]] * 10, False),
    ],
)
def test_images_are_recognised(x, pixels):
    assert from_arrays(x, [0, 1] * 5).pixels is pixels


@pytest.mark.parametrize(
    "x",
    [
        [[1, 2], [3, 4]],
        ((1.0, 2.0), (3.0, 4.0)),
        np.array([[1, 2], [3, 4]], ">i2"),
        np.array([[1, 3], [2, 4]], np.float16).T,
        np.array([[1, 2], [3, 4]], np.uint64)[::1],
        np.array([[3, 4], [1, 2]], np.longdouble)[::-1],
        np.array([[1, 2.0], [True, 4]], object) + np.array([[0, 0], [2, 0]]),
        torch.tensor([[1, 3], [2, 4]]).T,
        torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([[[1], [2]], [[3], [4]]], dtype=torch.uint8),
    ],
)
def test_check_inputs(x):
    checked = check_inputs(x, 2)
    assert checked.dtype == torch.float32 and checked.is_contiguous() and not checked.requires_grad
    assert torch.equal(checked, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_check_inputs_does_not_share_numpy_memory():
    x = np.ones((2, 2), np.float32)
    x.flags.writeable = False
    check_inputs(x)[0, 0] = 5
    assert x[0, 0] == 1


def test_check_inputs_one_of_each():
    assert check_inputs([[True]]).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, np.nan]], r"x\[0, 1\] is nan, not finite"),
        ([[1.0, 2.0], [-np.inf, 2.0]], r"x\[1, 0\] is -inf, not finite"),
        (np.array([[[1.0, 2.0]], [[3.0, np.inf]]]), r"x\[1, 0, 1\] is inf, not finite"),
        (torch.tensor([[1.0], [torch.nan]]), r"x\[1, 0\] is nan, not finite"),
        ([[0.0, 1e39]], r"x\[0, 1\] is 1e\+39, too large for float32"),
        (torch.tensor([[-1e300]], dtype=torch.float64), r"x\[0, 0\] is -1e\+300, too large for float32"),
        ([[10**40]], r"x\[0, 0\] is 1e\+40, too large for float32"),
        ([[10**400]], r"x\[0, 0\] is 1000*, too large for float32"),
        ([["1", "2"]], r"x\[0, 0\] is '1', not a real number"),
        ([[1, "two"]], r"x\[0, 0\] is '1'|x\[0, 1\] is 'two', not a real number"),
        ([[1.5, None]], r"x\[0, 1\] is None, not a real number"),
        (np.array([[1, 2j]]), "x must hold real numbers, got dtype complex128"),
        (torch.tensor([[1j]]), "real numbers, got torch.complex64"),
        (np.zeros((1, 1), "datetime64[ns]"), r"got dtype datetime64\[ns\]"),
        (torch.eye(2).to_sparse(), "dense tensor of real numbers"),
        (np.ma.masked_array([[1, 2]], [[0, 1]]), "masked"),
        ([[1], [2, 3]], "x is not an array of numbers"),
        (np.zeros((0, 3)), r"x has shape \[0, 3\]: 0 samples of 3 features"),
        (torch.zeros(2, 0), "2 samples of 0 features"),
        (np.zeros((2, 3, 0)), "2 samples of 0 features"),
        ([], r"\[samples, features, ...\], got \[0\]"),
        ([1.0, 2.0], r"got \[2\]; one sample is x\[None\]"),
        (3.0, r"got \[\]"),
        (None, r"x\[\] is None"),
    ],
)
def test_check_inputs_refuses(x, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(x)


def test_check_inputs_counts_features():
    with pytest.raises(ValueError, match=r"x has 6 features a sample \(shape \[1, 2, 3\]\), expected 5"):
        check_inputs(np.zeros((1, 2, 3)), 5)


@pytest.mark.parametrize(
    ("y", "classes", "labels"),
    [
        ([2, 0, 2], [1, 0, 1], (0, 2)),
        ([10, 9, -1], [2, 1, 0], (-1, 9, 10)),
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (np.array(["b", "a", "b"], object), [1, 0, 1], ("a", "b")),
        (np.array([2.0, 0.0, 2.0]), [1, 0, 1], (0, 2)),
        (np.array([3, 1, 3], object), [1, 0, 1], (1, 3)),
        ([10**400, 1, 1], [1, 0, 0], (1, 10**400)),
        ([2**63, -1, -1], [1, 0, 0], (-1, 2**63)),
        (np.array([2**63, 1, 1], np.uint64), [1, 0, 0], (1, 2**63)),
        ([True, False, True], [1, 0, 1], (False, True)),
        (torch.tensor([5, 4, 5], dtype=torch.int32), [1, 0, 1], (4, 5)),
        (torch.tensor([5, 4, 5], dtype=torch.bfloat16), [1, 0, 1], (4, 5)),
    ],
)
def test_check_labels(y, classes, labels):
    indices, names = check_labels(y, 3)
    assert indices.dtype == torch.int64 and indices.tolist() == classes and names == labels


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], "y has 2 labels for 3 samples"),
        ([0.0, np.nan, 1.0], r"y\[1\] is nan"),
        ([0.0, 1.0, np.inf], r"y\[2\] is inf"),
        (torch.tensor([0, 1, 0.5]), r"y\[2\] is 0.5; labels are whole numbers"),
        (["a", None, "b"], r"y\[1\] is None"),
        (["a", float("nan"), "b"], r"y\[1\] is nan; .* or all strings"),
        ([0, "a", 1], r"y\[0\] is 0; .* or all strings"),
        ([0, None, 1], r"y\[1\] is None"),
        ([0, 1j, 1], r"y\[1\] is 1j|y\[0\] is 0j"),
        ([b"a", b"b", b"c"], r"y\[0\] is b'a'"),
        (np.zeros(3, "datetime64[ns]"), "got dtype datetime64"),
        ([7, 7, 7], "at least 2 classes, got 1: 7"),
        (np.zeros((3, 1), int), r"shape \[samples\], got \[3, 1\]"),
        ([[0], [1, 2], [3]], "y is not a list of labels"),
        (5, r"shape \[samples\], got \[\]"),
        (np.ma.masked_array([1, 2, 3], [0, 1, 0]), "masked"),
    ],
)
def test_check_labels_refuses(y, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y, 3)


def test_no_labels():
    with pytest.raises(ValueError, match="at least 2 classes, got 0: no labels"):
        check_labels([], 0)


# Validation split


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(10, 40), min_size=2, max_size=5),
    fraction=st.floats(0.1, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_validation(counts, fraction, seed):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    train, held_out = split_validation(y, fraction, seed)
    assert train.dtype == held_out.dtype == torch.int64
    assert torch.cat([train, held_out]).sort().values.tolist() == list(range(len(y)))
    shares = y[held_out].bincount(minlength=len(counts))
    assert (shares - torch.tensor(counts) * len(held_out) / len(y)).abs().max() < 1
    assert all(torch.equal(a, b) for a, b in zip(split_validation(y, fraction, seed), (train, held_out), strict=True))


def test_split_validation_of_nothing():
    train, held_out = split_validation(torch.tensor([1, 0, 1]), 0, 0)
    assert train.tolist() == [0, 1, 2] and held_out.shape == (0,) and held_out.dtype == torch.int64


@pytest.mark.parametrize(
    ("y", "fraction", "message"),
    [
        ([0, 1] * 5, 1.0, "at least 0 and below 1, got 1.0"),
        ([0, 1] * 5, -0.1, "got -0.1"),
        ([0, 1] * 5, float("nan"), "got nan"),
        ([0, 1] * 5, 0.05, "10 samples split into 9 and 1 are too few for 2 classes"),
        ([0, 1] * 5, 0.95, "10 samples split into 0 and 10 are too few"),
        ([0] * 9 + [4], 0.5, "class 4 has 1 sample"),
        ([0] * 98 + [4] * 2, 0.9, "class 4 has 2 of 100 samples: none is left to train on"),
        ([], 0.5, "no samples"),
    ],
)
def test_split_validation_refuses(y, fraction, message):
    with pytest.raises(ValueError, match=message):
        split_validation(torch.tensor(y, dtype=torch.int64), fraction, 0)


# Standardisation


def test_standardizer_per_feature():
    x = torch.tensor([[1.0, 10.0, 7.0], [3.0, 30.0, 7.0]])
    fitted = Standardizer.fit(x, pixels=False)
    assert fitted.mean.tolist() == [2, 20, 7] and fitted.scale.tolist() == [1, 10, 1]
    assert fitted.mean.dtype == fitted.scale.dtype == torch.float32
    assert fitted.transform(x).tolist() == [[-1, -1, 0], [1, 1, 0]]
    assert fitted.transform([[5, 0, 8]]).tolist() == [[3, -2, 1]]


def test_standardizer_pixels():
    x = np.array([[0, 2], [4, 2]], np.uint8)
    fitted = Standardizer.fit(x, pixels=True)
    assert fitted.mean.tolist() == [2, 2] and fitted.scale.shape == (2,)
    torch.testing.assert_close(fitted.scale, torch.full((2,), 2**0.5))
    constant = Standardizer.fit(np.full((3, 2), 0.1), pixels=True)
    assert constant.scale.tolist() == [1, 1] and constant.transform([[0.1, 0.1]]).tolist() == [[0, 0]]


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(1, 3000), st.integers(1, 7), st.booleans())
@settings(max_examples=100, deadline=None)
def test_standardizer_constants(value, n, d, pixels):
    constant = torch.full((n, d), value)
    fitted = Standardizer.fit(constant, pixels)
    assert fitted.scale.tolist() == [1] * d and not fitted.transform(constant).any()


@pytest.mark.parametrize("pixels", [True, False])
def test_standardizer_tiny_spread(pixels):
    assert Standardizer.fit([[5.0, 5.0]], pixels).scale.tolist() == [1, 1]
    tiny = Standardizer.fit([[0.0]] * 9 + [[1e-45]], pixels)
    assert tiny.scale.tolist() == [1]


def test_standardizer_is_exact_far_from_zero():
    x = 1e6 + torch.arange(10_000).remainder(2)[:, None].float()
    fitted = Standardizer.fit(x, pixels=False)
    assert fitted.mean.item() == 1_000_000.5 and fitted.scale.item() == 0.5


def test_standardizer_depends_on_training_samples_alone(rng):
    dataset = from_arrays(rng.normal(3, 2, (50, 4)), [0, 1] * 25)
    fitted = Standardizer.fit(dataset.x_train, dataset.pixels)
    train = fitted.transform(dataset.x_train)
    torch.testing.assert_close(train.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(4))
    assert fitted.transform(dataset.x_test).mean(0).abs().max() > 1e-3


def test_standardizer_refuses():
    fitted = Standardizer.fit([[1.0, 2.0], [2.0, 4.0]], pixels=False)
    with pytest.raises(ValueError, match=r"1 features a sample .*expected 2"):
        fitted.transform([[1.0]])
    with pytest.raises(ValueError, match="0 samples"):
        Standardizer.fit(np.zeros((0, 2)), pixels=False)
    with pytest.raises(ValueError, match="nan"):
        Standardizer.fit([[np.nan]], pixels=False)


def test_names():
    assert set(data.NAMES) == {"digits", "breast_cancer", *data_files.SOURCES}
