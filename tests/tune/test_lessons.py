import json

from hypothesis import given
from hypothesis import strategies as st

from tests.tune import results
from trtsparse.tune.lessons import Lessons


@given(results.lessons)
def test_lessons_survive_json(lessons):
    assert Lessons.from_dict(json.loads(json.dumps(lessons.to_dict()))) == lessons


@given(results.lessons, results.lessons)
def test_merging_loses_nothing_and_prefers_its_own_words(one, other):
    before = dict(one.killers)
    merged = Lessons(dict(one.killers), set(one.refused))
    merged.merge(other)
    assert merged.refused == one.refused | other.refused
    assert merged.killers == {**other.killers, **before}


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.booleans())))
def test_a_form_is_left_when_every_kernel_was_refused_it(forms):
    lessons = Lessons()
    lessons.learn_refusals(forms)
    wanted = {form for form, _ in forms if form and all(no for other, no in forms if other == form)}
    assert lessons.refused == wanted
