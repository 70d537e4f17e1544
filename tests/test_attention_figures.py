"""Pictures of what heads look at: the numbers given, beside the texts of their tokens."""

import numpy as np
import pytest
from test_figures import assert_readable

from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.report import attention_figure, entropy_by_position_figure, token_labels


def random_probs(*shape: int) -> np.ndarray:
    """Causal probabilities [*shape[:-1], T, T], T the last of `shape`."""
    length = shape[-1]
    weights = np.tril(np.random.default_rng(0).uniform(0.1, 1.0, (*shape, length)))
    return weights / weights.sum(-1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"·token{n}" for n in range(count)]


def panels(figure) -> list:
    return [axes for axes in figure.axes if axes.images]


def test_one_head_is_drawn_with_its_tokens_and_its_entropy():
    probs_TT = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    figure = attention_figure(probs_TT, ["def", "·f", "("], title="head 4.3")
    (axes,) = panels(figure)
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown.filled(0.0), probs_TT)
    assert shown.mask.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["def", "·f", "("]
    entropy = (0 + np.log(2) + 1.5 * np.log(2)) / 3
    assert axes.get_title(loc="left") == f"{entropy:.2f} nats"
    assert figure.get_suptitle() == "head 4.3"


def test_a_grid_has_every_head_of_a_layer_on_one_scale():
    probs_HTT = random_probs(6, 5)
    figure = attention_figure(probs_HTT, names(5))
    for head, axes in enumerate(panels(figure)):
        assert axes.get_title(loc="left").startswith(f"head {head}, ")
        np.testing.assert_allclose(axes.images[0].get_array().filled(0.0), probs_HTT[head], 1e-6)
        assert axes.images[0].get_clim() == (0.0, 1.0)
    assert len(panels(figure)) == 6


@pytest.mark.parametrize("shape", [(3,), (1, 1), (20,), (48,), (49,), (128,), (2, 8), (5, 16)])
def test_attention_is_readable_at_every_size(shape):
    figure = attention_figure(random_probs(*shape), names(shape[-1]), title="layer 3")
    assert_readable(figure)


def test_what_an_array_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"\[2, 1, 4, 3, 3\].*attention_probs\[layer, 0\]"):
        attention_figure(random_probs(2, 1, 4, 3), names(3))
    with pytest.raises(ValueError, match="2 labels for 3 positions"):
        attention_figure(random_probs(3), names(2))
    with pytest.raises(ValueError, match="not a distribution"):
        attention_figure(np.eye(3) * 2.0, names(3))
    with pytest.raises(ValueError, match=r"expected \[L, H, T\] or \[L, B, H, T\], got \[2, 3\]"):
        entropy_by_position_figure(np.zeros((2, 3)))


def test_spaces_and_line_breaks_of_tokens_are_visible():
    tokenizer = bytes_tokenizer()
    assert token_labels(tokenizer, tokenizer.encode("a \n\t")) == ["a", "·", "↵", "→"]


def test_entropy_by_position_is_the_mean_over_sequences_and_heads_below_log_t():
    entropy_LBHT = np.random.default_rng(0).uniform(0.0, 1.0, (3, 2, 4, 16))
    axes = entropy_by_position_figure(entropy_LBHT).axes[0]
    most, *layers = axes.lines
    np.testing.assert_allclose(most.get_ydata(), np.log(np.arange(1, 17)))
    for layer, line in enumerate(layers):
        np.testing.assert_allclose(line.get_ydata(), entropy_LBHT[layer].mean((0, 1)))
    assert_readable(axes.figure)
