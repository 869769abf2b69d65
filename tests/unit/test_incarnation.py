"""A node knows the life before it where nobody else can be living under its name on this machine."""

from workers.node.incarnation import NodeIncarnation


def test_each_life_has_its_own_incarnation_and_knows_the_one_before(tmp_path):
    first = NodeIncarnation(tmp_path, "n1")
    first.close()
    second = NodeIncarnation(tmp_path, "n1")
    assert first.predecessor == ""
    assert second.predecessor == first.incarnation != second.incarnation
    second.close()


def test_second_process_of_one_name_knows_nobody_while_the_first_lives(tmp_path):
    first = NodeIncarnation(tmp_path, "n1")
    second = NodeIncarnation(tmp_path, "n1")
    assert second.predecessor == ""
    second.close()
    first.close()
    third = NodeIncarnation(tmp_path, "n1")
    assert third.predecessor == first.incarnation, "the refused one has left no trace"
    third.close()


def test_nodes_of_other_names_do_not_meet(tmp_path):
    first = NodeIncarnation(tmp_path, "n1")
    second = NodeIncarnation(tmp_path, "n2")
    assert second.predecessor == ""
    first.close()
    second.close()


def test_folder_that_cannot_be_used_only_costs_the_knowledge(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    life = NodeIncarnation(tmp_path / "file", "n1")
    assert life.predecessor == ""
    assert life.incarnation
    life.close()
    life.close()
