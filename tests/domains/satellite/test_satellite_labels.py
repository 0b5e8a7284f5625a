from pathlib import Path

import pytest

from overlays.domains.satellite.labels import key, match_tiles, read_labels
from overlays.errors import UserError


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_name_in_xlsx_and_csv(tmp_path):
    import pandas as pd

    rows = {"City": ["A", "B"], "Year": [2024, 2024], "Population Growth": [1.5, -0.25], "Area": [3.0, 4.0]}
    pd.DataFrame(rows).to_excel(tmp_path / "t.xlsx", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.xlsx", "t.csv"):
        found = read_labels(tmp_path / name)
        assert found.values == {"A": 1.5, "B": -0.25} and found.name == "population_growth"


def test_columns_of_other_names_are_told_apart_by_their_kind(tmp_path):
    found = read_labels(table(tmp_path / "t.csv", "stadt;rate 2020;year\nA;1.5 %;2020\nB;−2;2020\n"))
    assert found.values == {"A": 1.5, "B": -2.0} and found.name == "rate_2020"


def test_columns_that_cannot_be_told_apart_are_asked_for(tmp_path):
    file = table(tmp_path / "t.csv", "city,gdp,area\nA,1,2\nB,3,4\n")
    with pytest.raises(UserError, match="name gdp or area with --label-column"):
        read_labels(file)
    assert read_labels(file, label_column="area").values == {"A": 2.0, "B": 4.0}
    with pytest.raises(UserError, match=r"no column 'size' \(--label-column\); it has city, gdp, area"):
        read_labels(file, label_column="size")


def test_labels_that_are_no_numbers_are_listed(tmp_path):
    found = read_labels(table(tmp_path / "t.csv", "city,growth\nA,1.5\nB,\nC,about two\nD,2\nE,inf\n,3\nF,4\n"))
    assert found.values == {"A": 1.5, "D": 2.0, "F": 4.0}
    assert [city for city, _ in found.dropped] == ["B", "C", "E", "row 7"]
    assert "'about two'" in found.dropped[1][1]


def test_two_labels_for_a_city_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"two labels for são paulo \(row 3 and row 2\)"):
        read_labels(table(tmp_path / "t.csv", "city,growth\nSão Paulo,1\nsão paulo,2\n"))


@pytest.mark.parametrize("name, content, words", [
    ("t.xlsx", "no workbook", "cannot be read"), ("t.ods", "x", "must be .xlsx or .csv"), ("u.csv", None, "no table")])
def test_a_table_that_is_none_is_one_sentence(name, content, words, tmp_path):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        read_labels(tmp_path / name)


def test_tiles_find_their_city():
    tiles = [Path(name) for name in ("Lyon.tif", "san_jose_2024.tif", "San-2024-3.tif", "Sao Paulo.tif", "Lyons.tif",
                                     "乌鲁木齐.tif")]
    found = match_tiles(tiles, ["Lyon", "San", "San Jose", "São Paulo", "乌鲁木齐"])
    assert list(found.values()) == ["Lyon", "San Jose", "San", "São Paulo", None, "乌鲁木齐"]


def test_a_comma_may_be_the_decimal_sign(tmp_path):
    for rows in ("A;1,5\nB;−0,25\nC;2\nD;\n", "A;1,5 %\nB;−0,25 %\nC;2\nD;\n"):
        found = read_labels(table(tmp_path / "t.csv", "city;growth\n" + rows))
        assert found.values == {"A": 1.5, "B": -0.25, "C": 2.0}
    found = read_labels(table(tmp_path / "t.csv", 'city,people,growth\nA,"1,234",1\nB,"2,345",2\n'), None, "growth")
    assert found.values == {"A": 1.0, "B": 2.0}
    with pytest.raises(UserError, match="people .*holds no number"):  # thousands, or decimals: nobody knows
        read_labels(tmp_path / "t.csv", None, "people")


def test_cities_that_are_numbers_stay_whole_beside_an_empty_row(tmp_path):
    import pandas as pd

    pd.DataFrame({"city": [101, 102, None], "growth": [1.0, 2, 3]}).to_excel(tmp_path / "t.xlsx", index=False)
    found = read_labels(tmp_path / "t.xlsx")
    assert found.values == {"101": 1.0, "102": 2.0}
    assert list(match_tiles([Path("101.tif"), Path("102_2024.tif")], list(found.values)).values()) == ["101", "102"]


def test_vowel_signs_tell_names_apart_and_accents_do_not():
    assert key("दिल्ली") != key("दली") and key("กิน") != key("กน") and key("São Tomé") == key("sao tome")
    assert key("Việt Trì") == key("viet tri") and key("مَكّة") == key("مكة")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_a_text_table_in_the_encodings_of_spreadsheets(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("城市,人口增长率\n上海,1.5\n北京,2\n".encode(encoding))
    assert read_labels(tmp_path / "t.csv").values == {"上海": 1.5, "北京": 2}


def test_a_text_table_in_another_encoding_is_one_sentence(tmp_path):
    (tmp_path / "t.csv").write_bytes("city,growth\nÜrümqi,1.5\nSão Paulo,2\n".encode("latin-1"))
    with pytest.raises(UserError, match="t.csv cannot be read: it is not UTF-8"):
        read_labels(tmp_path / "t.csv")


def test_a_percent_sign_that_is_only_shown_does_not_count(tmp_path):
    from openpyxl import load_workbook

    for form, expected in (('0.00"%"', 1.8), (r"0.00\%", 1.8), ("[Red]-0.0%;0.0%", 180)):
        path = workbook(tmp_path / "a.xlsx", [["city", "growth"], ["A", 1.8], ["B", 2]])
        book = load_workbook(path)
        book.active["B2"].number_format = form
        book.save(path)
        assert read_labels(path).values["A"] == pytest.approx(expected)


def workbook(path, rows, title="Sheet", before=(), merged=(), percent=()):
    """An .xlsx of rows; `before`: sheets before it; `percent`: cells formatted as percentages."""
    from openpyxl import Workbook

    book = Workbook()
    for name in before:
        book.create_sheet(name).append(["notes", "nothing here"])
    book.remove(book.worksheets[0])
    sheet = book.create_sheet(title)
    for row in rows:
        sheet.append(row)
    for area in merged:
        sheet.merge_cells(area)
    for cell in percent:
        sheet[cell].number_format = "0.0%"
    book.save(path)
    return path


def test_a_cell_formatted_as_a_percentage_counts_in_percent(tmp_path):
    found = read_labels(workbook(tmp_path / "a.xlsx", [["city", "growth"], ["A", 0.018], ["B", "1.8 %"], ["C", 1.8]],
                                 percent=("B2",)))
    assert found.values == pytest.approx({"A": 1.8, "B": 1.8, "C": 1.8})


@pytest.mark.parametrize("rows, merged, column", [
    ([["Growth of cities", None, None], [None] * 3, ["city", "year", "growth"],
      ["A", 2020, 1.5], ["B", 2020, 2]], (), None),
    ([["city", "growth", "people"], [None, "% a year", "millions"], ["A", 1.5, 7], ["B", 2, 8]], (),
     "growth % a year"),
    ([["city", "numbers", None], [None, "growth", "people"], ["A", 1.5, 7], ["B", 2, 8]], ("A1:A2", "B1:C1"),
     "numbers growth"),
])
def test_titles_two_header_rows_and_merged_cells(rows, merged, column, tmp_path):
    file = workbook(tmp_path / "a.xlsx", rows, before=("about",), merged=merged)
    found = read_labels(file, label_column=column)
    assert found.values == {"A": 1.5, "B": 2.0} and found.city_column == "city"


def test_a_column_of_two_years_is_asked_for_and_one_without_a_name_is_never_taken(tmp_path):
    file = workbook(tmp_path / "a.xlsx", [["city", "growth", None], [None, 2020, 2021], ["A", 1, 2], ["B", 3, 4]],
                    merged=("A1:A2", "B1:C1"))
    with pytest.raises(UserError, match="name growth 2020 or growth 2021 with --label-column"):
        read_labels(file)
    assert read_labels(file, label_column="growth 2021").values == {"A": 2.0, "B": 4.0}
    with pytest.raises(UserError, match="has no header row that names the cities' column; its first rows are"):
        read_labels(workbook(tmp_path / "b.xlsx", [["Report", None], ["A", 1.0], ["B", 2.0]]))


def test_labels_that_cannot_be_learnt_are_listed(tmp_path):
    found = read_labels(table(tmp_path / "t.csv", "city,growth\nA,1.5\nB,1e308\n"))
    assert found.values == {"A": 1.5} and found.dropped == [("B", "1e+308 in column growth is too large to be learnt")]


def test_names_that_only_begin_with_a_citys_are_taken_on_request():
    tiles = [Path(name) for name in ("San_Jose_del_Monte.tif", "Kansas_City_2024.tif", "Kansas-tile7.tif")]
    assert list(match_tiles(tiles, ["San Jose", "Kansas"]).values()) == [None, None, "Kansas"]
    assert list(match_tiles(tiles, ["San Jose", "Kansas"], inexact=True).values()) == ["San Jose", "Kansas", "Kansas"]
