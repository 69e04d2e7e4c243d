import pytest

from sonde.errors import BackboneError
from sonde.read.sites import DECODER, MAIN, Site, expand

ONE = {MAIN: 6}
TWO = {MAIN: 6, DECODER: 3}


def names(spec, layers=ONE):
    return [str(site) for site in expand(spec, layers)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hidden.*", [f"hidden.{n}" for n in range(7)]),
        ("ffn.*", [f"ffn.{n}" for n in range(1, 7)]),
        ("hidden.0", ["hidden.0"]),
        ("ffn.3", ["ffn.3"]),
        ("hidden.-1", ["hidden.6"]),
        ("ffn.-1", ["ffn.6"]),
        ("hidden.-2:", ["hidden.5", "hidden.6"]),
        ("hidden.2:5", ["hidden.2", "hidden.3", "hidden.4"]),
        ("ffn.2:5", ["ffn.2", "ffn.3", "ffn.4"]),
        ("ffn.:3", ["ffn.1", "ffn.2"]),
        ("hidden.::3", ["hidden.0", "hidden.3", "hidden.6"]),
        ("hidden.-20:1", ["hidden.0"]),
        ("pooler", ["pooler"]),
        ("sentence", ["sentence"]),
    ],
)
def test_a_specification_names_sites(spec, expected):
    assert names(spec) == expected


def test_encoder_decoder_models_have_two_stacks_and_bare_means_the_encoder():
    assert names("encoder.hidden.2", TWO) == names("hidden.2", TWO) == ["hidden.2"]
    assert names("decoder.ffn.*", TWO) == ["decoder.ffn.1", "decoder.ffn.2", "decoder.ffn.3"]
    assert expand("decoder.hidden.-1", TWO) == (Site(DECODER, "hidden", 3),)


@pytest.mark.parametrize("spec", ["hidden.7", "hidden.-8", "ffn.0", "ffn.7", "ffn.-7", "hidden.5:2", "hidden.9:"])
def test_out_of_range_says_what_exists(spec):
    with pytest.raises(BackboneError, match=r"out of range. It has hidden.0 to hidden.6, ffn.1 to ffn.6, pooler"):
        expand(spec, ONE)


@pytest.mark.parametrize("spec", ["", "hidden", "hidden.", "attention.3", "pooler.1", "hiddens.*", "mean", "decoder."])
def test_unknown_sites_say_what_exists(spec):
    with pytest.raises(BackboneError, match=r"hidden.0 to hidden.6"):
        expand(spec, ONE)


@pytest.mark.parametrize("spec", ["hidden.x", "hidden.1.5", "hidden.1:2:3:4", "hidden.1,2"])
def test_selectors_that_are_no_number_or_slice(spec):
    with pytest.raises(BackboneError, match=r"after the dot stands \*, a number or a slice"):
        expand(spec, ONE)


@pytest.mark.parametrize("spec", ["decoder.hidden.1", "encoder.hidden.1"])
def test_one_stack_takes_no_prefix(spec):
    with pytest.raises(BackboneError, match="this backbone has one stack"):
        expand(spec, ONE)


def test_a_decoder_has_no_pooler():
    with pytest.raises(BackboneError, match=r"decoder.hidden.0 to decoder.hidden.3"):
        expand("decoder.pooler", TWO)


@pytest.mark.parametrize("name", ["hidden.0", "ffn.12", "pooler", "sentence", "decoder.hidden.2"])
def test_the_canonical_form_is_read_back(name):
    assert str(Site.parse(name)) == name


@pytest.mark.parametrize("name", ["hidden.*", "hidden.-1", "hidden", "ffn", "decoder.pooler", "x.3", ""])
def test_only_the_canonical_form_is_parsed(name):
    with pytest.raises(BackboneError, match=r"is no site. A site is written like hidden.6"):
        Site.parse(name)


def test_sites_sort_by_stack_kind_and_layer():
    sites = [Site(MAIN, "hidden", 10), Site(MAIN, "hidden", 2), Site(DECODER, "hidden", 4), Site(MAIN, "ffn", 1)]
    assert [str(site) for site in sorted(sites)] == ["decoder.hidden.4", "ffn.1", "hidden.2", "hidden.10"]
