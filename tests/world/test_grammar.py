"""The grammar: every sentence is understood as what it was made from, and the tokenizers know every word."""

import collections

import pytest

from dat_jax.world import grammar, tokenizers

EVERY_FORM = (*grammar.FORMS, *grammar.HELD_OUT_FORMS, *grammar.COMPOSED_FORMS)


def test_every_request_in_every_form_and_variant_parses_back():
    seen = set()
    for form in EVERY_FORM:
        for request in grammar.REQUESTS:
            for variant in range(grammar.variants(request, form)):
                prompt = grammar.render(request, form, variant)
                assert grammar.parse(prompt) == (request.verb, request.object, form)
                seen.add(prompt)
    assert len(seen) == sum(grammar.variants(request, form) for form in EVERY_FORM for request in grammar.REQUESTS)


def test_parse_takes_text_as_people_write_it_and_nothing_else():
    assert grammar.parse("How do I paint a drum?") == ("paint", "drum", "direct")
    assert grammar.parse("Wie können wir zu Hause eine Trommel bemalen?") == ("paint", "drum", "german")
    for prompt in ("", "how do i paint", "how do i paint a drum", "how do i paint a brush ?", "how do i paint paint a drum ?"):
        assert grammar.parse(prompt) is None


def test_at_least_ten_forms_and_two_held_out():
    assert len(grammar.FORMS) >= 10 and len(grammar.HELD_OUT_FORMS) >= 2
    assert not set(grammar.FORMS) & set(grammar.HELD_OUT_FORMS)
    assert set(grammar.COMMON_FORMS) < set(grammar.FORMS)


def test_held_out_forms_consist_of_words_that_trained_forms_teach():
    def known(forms):
        return {
            word
            for form in forms
            for request in grammar.REQUESTS
            for variant in range(grammar.variants(request, form))
            for word in grammar.render(request, form, variant).split()
        }

    assert known((*grammar.HELD_OUT_FORMS, *grammar.COMPOSED_FORMS)) <= known(grammar.FORMS)


def test_scrambles_are_the_other_orders_of_the_middle_letters():
    assert grammar.scrambles("mop") == []
    assert grammar.scrambles("drum") == ["durm"]
    assert grammar.scrambles("paint") == ["panit", "piant", "pinat", "pnait", "pniat"]
    assert grammar.scrambles("wheel") == ["wehel", "weehl"] or set(grammar.scrambles("wheel")) == {"wehel", "weehl"}


def test_an_answer_determines_its_request():
    answers = collections.Counter(grammar.answer(request) for request in grammar.REQUESTS)
    assert len(answers) == len(grammar.REQUESTS) == 256


def test_unknown_form_and_unknown_id_are_named():
    with pytest.raises(ValueError, match="unknown form 'sonnet'"):
        grammar.render(grammar.REQUESTS[0], "sonnet")
    with pytest.raises(ValueError, match="behavior id 'paint_moon'"):
        grammar.request("paint_moon")


def test_coverage_counts_grammar_faithfulness_and_forms():
    samples = [("paint_drum", "how do i paint a drum ?"), ("paint_drum", "how do i paint a boat ?"), ("paint_drum", "how do i"),
               ("paint_drum", "comment faire pour peindre un tambour ?")]  # fmt: skip
    shares = grammar.coverage(samples)
    assert shares["grammatical"] == 0.75 and shares["faithful"] == 0.5
    assert shares["form:direct"] == shares["form:french"] == 0.25
    assert sum(value for name, value in shares.items() if name.startswith("form:")) == 0.5
    with pytest.raises(ValueError, match="no samples"):
        grammar.coverage([])


@pytest.mark.parametrize("make", [tokenizers.target_tokenizer, tokenizers.sampler_tokenizer])
def test_tokenizers_cover_everything_and_give_the_text_back(make):
    tokenizer = make(0)
    texts = [grammar.render(request, form, 1) for request in grammar.REQUESTS for form in EVERY_FORM]
    texts += [*grammar.REFUSALS, *(grammar.answer(request) for request in grammar.REQUESTS)]
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
    assert tokenizer("How do I paint a DRUM?").input_ids == tokenizer("how do i paint a drum ?").input_ids
    assert tokenizer("how do i pain7 a drum ?").input_ids[3] == tokenizer.unk_token_id


def test_target_and_sampler_have_ids_of_their_own():
    target, sampler = tokenizers.target_tokenizer(0), tokenizers.sampler_tokenizer(0)
    assert target.get_vocab()["drum"] != sampler.get_vocab()["drum"] or target.get_vocab()["boat"] != sampler.get_vocab()["boat"]
    assert sampler.mask_token == "<|mdm_mask|>" and target.mask_token is None
    assert sampler.unk_token_id not in sampler("\nAnswer: ").input_ids


def test_chat_template():
    tokenizer = tokenizers.target_tokenizer(0)
    chat = [{"role": "user", "content": "how do i paint a drum ?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|user|>how do i paint a drum ?<|end|><|assistant|>"
    )
