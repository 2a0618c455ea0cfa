"""Search finds names of stop words, and passages in scripts with spaces between words and without."""

from pathlib import Path

import pandas
import pytest

from igpo_core.retrieval.bm25 import BM25

ENGLISH = [
    ("It", "A horror novel of 1986."),
    ("The The", "An English band formed in 1979."),
    ("The Who", "An English band formed in 1964."),
    ("Us", "A horror film of 2019."),
    ("A", "The first letter."),
    ("C", "A language designed at Bell Labs."),
    ("C++", "A language of classes that began at Bell Labs."),
    ("R", "A language for statistics."),
    ("÷", "An album of 2017."),
    ("!!!", "A dance band of Sacramento."),
    ("Vitamin D", "Made by skin in the sun."),
    ("Vitamin K", "Needed for blood to clot."),
    ("Vitamin A", "Needed for sight in the dark."),
    ("Malcolm Young", "A guitarist."),
    ("Malcolm X", "A minister and speaker of the sixties."),
]
CHINESE = [
    ("黄山", "黄山位于安徽省南部，是著名的旅游景点。"),
    ("长江", "长江是亚洲最长的河流，流入东海。"),
    ("水", "一种无色的液体。"),
]
JAPANESE = [
    ("富士山", "富士山は静岡県と山梨県にある日本で一番高い山です。"),
    ("琵琶湖", "琵琶湖は滋賀県にある大きな湖です。"),
    ("ガンダム", "ガンダムはロボットのアニメです。"),
]
THAI = [("เชียงใหม่", "เชียงใหม่เป็นจังหวัดทางภาคเหนือของประเทศไทย"), ("ภูเก็ต", "ภูเก็ตเป็นเกาะทางภาคใต้")]
LAO = [("ວຽງຈັນ", "ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ"), ("ແມ່ນ້ຳຂອງ", "ແມ່ນ້ຳຂອງເປັນແມ່ນ້ຳທີ່ຍາວ")]
KHMER = [("ភ្នំពេញ", "ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា"), ("សៀមរាប", "សៀមរាបជាខេត្តដែលមានប្រាសាទអង្គរ")]
BURMESE = [("နေပြည်တော်", "နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်ဖြစ်သည်"), ("ဧရာဝတီမြစ်", "ဧရာဝတီမြစ်သည်အရှည်ဆုံးမြစ်ဖြစ်သည်")]
KOREAN = [("서울", "서울은 대한민국의 수도이다."), ("한라산", "한라산은 제주도에 있는 산이다.")]
HINDI = [("दिल्ली", "दिल्ली भारत की राजधानी है।"), ("दिल", "दिल शरीर का एक अंग है।")]
ARABIC = [("القاهرة", "القَاهِرَة عاصمة مصر."), ("الرياض", "الرياض عاصمة السعودية.")]
RUSSIAN = [("Москва", "Москва — столица России."), ("Байкал", "Байкал — самое глубокое озеро.")]


def first(tmp_path: Path, passages: list[tuple[str, str]], query: str) -> str:
    frame = pandas.DataFrame([(f"p{n}", *passage) for n, passage in enumerate(passages)])
    BM25.build(frame.set_axis(["passage_id", "title", "text"], axis=1), tmp_path / "bm25")
    (found,) = BM25.open(tmp_path / "bm25").search([query], 3)
    return found[0].title if found else ""


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("It", "It"), ("it", "It"), ("The The", "The The"), ("the the band", "The The"), ("The Who", "The Who"), ("us", "Us"),
        ("A", "A"), ("C", "C"), ("C++", "C++"), ("R language", "R"), ("÷", "÷"), ("!!!", "!!!"), ("vitamin K", "Vitamin K"),
        ("vitamin a", "Vitamin A"), ("Malcolm X", "Malcolm X"), ("It\u200b", "It"),
    ],
)  # fmt: skip
def test_a_name_of_stop_words_letters_or_signs_is_found(tmp_path: Path, query: str, title: str) -> None:
    assert first(tmp_path, ENGLISH, query) == title


@pytest.mark.parametrize(
    ("passages", "query", "title"),
    [
        (CHINESE, "黄山在哪个省？", "黄山"), (CHINESE, "亚洲最长的河流", "长江"), (CHINESE, "水", "水"),
        (JAPANESE, "日本で一番高い山", "富士山"), (JAPANESE, "滋賀県の湖", "琵琶湖"), (JAPANESE, "ｶﾞﾝﾀﾞﾑ", "ガンダム"),
        (THAI, "จังหวัดทางภาคเหนือ", "เชียงใหม่"), (THAI, "เกาะไหนอยู่ภาคใต้", "ภูเก็ต"), (LAO, "ນະຄອນຫຼວງ", "ວຽງຈັນ"),
        (KHMER, "ប្រាសាទអង្គរ", "សៀមរាប"), (BURMESE, "အရှည်ဆုံးမြစ်", "ဧရာဝတီမြစ်"),
    ],
)  # fmt: skip
def test_a_script_without_spaces_is_searched(
    tmp_path: Path, passages: list[tuple[str, str]], query: str, title: str
) -> None:
    assert first(tmp_path, passages, query) == title


@pytest.mark.parametrize(
    ("passages", "query", "title"),
    [
        (KOREAN, "대한민국의 수도", "서울"), (KOREAN, "제주도의 산", "한라산"), (HINDI, "दिल्ली", "दिल्ली"), (HINDI, "दिल", "दिल"),
        (ARABIC, "القاهرة", "القاهرة"), (RUSSIAN, "столица РОССИИ", "Москва"),
    ],
)  # fmt: skip
def test_a_script_with_spaces_is_searched_by_whole_words(
    tmp_path: Path, passages: list[tuple[str, str]], query: str, title: str
) -> None:
    """Vowel signs belong to their word; Korean particles are written to it, and are no part of what is looked for."""
    assert first(tmp_path, passages, query) == title


def test_a_query_and_a_passage_in_other_forms_of_unicode_meet(tmp_path: Path) -> None:
    passages = [("Beyonce\u0301", "A singer of Houston."), ("Mu\u0308ller", "A miller.")]
    assert first(tmp_path, passages, "Beyonc\u00e9") == "Beyonce\u0301"
    assert first(tmp_path, passages, "M\u00fcl\u00adler") == "Mu\u0308ller"


def test_stop_words_decide_nothing_in_a_question(tmp_path: Path) -> None:
    """What a long question finds depends on its ordinary words: the film It is not found by each question with "it"."""
    assert first(tmp_path, ENGLISH, "Is it true that a novel of the year 1986 is the one?") == "It"  # novel, 1986
    assert first(tmp_path, ENGLISH, "Where is it that one finds this or that to be so?") == ""
