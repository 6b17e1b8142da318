"""Credentials outlive the registration that they were issued under, and must not outlive a kill of it."""

from tests.kit import ARCHIVE, INVOICES, Broker, Home

AGENT = "  dispute-bot:\n"


def test_an_agent_that_was_removed_can_still_be_killed(home: Home, broker: Broker) -> None:
    token = broker.granted()["access_token"]
    task = broker.open_task()
    under_task = broker.granted(task=task)["access_token"]
    forget_the_agent(home, broker)

    dry = broker.kill("agent", "dispute-bot", dry_run=True).json()
    receipt = broker.kill("agent", "dispute-bot")

    assert (dry["would_end"]["tokens"], dry["would_end"]["tasks"]) == (2, 1)
    assert receipt.status_code == 201, receipt.text
    assert receipt.json()["ended"]["tokens"] == 2
    assert not broker.active(token)
    assert not broker.active(under_task)


def test_only_an_operator_of_everything_kills_what_has_no_owner_any_more(home: Home, broker: Broker) -> None:
    broker.granted("data-bot", scope="archive:read")
    home.replace("registry/agents.yaml", "  data-bot:\n", "  data-bot-2:\n")
    home.replace("registry/agents.yaml", "{trust: idp, subject: data-bot}", "{trust: idp, subject: data-bot-2}")
    home.replace("policies/permits/data.cedar", '"data-bot"', '"data-bot-2"')
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200

    assert broker.kill("agent", "data-bot", by="data-lead").status_code == 403
    assert broker.kill("agent", "data-bot").status_code == 201
    assert broker.kill("agent", "nobody-ever").status_code == 404


def test_a_resource_is_killed_under_every_audience_that_its_credentials_carry(home: Home, broker: Broker) -> None:
    before = broker.granted("data-bot", scope="archive:read")["access_token"]
    new = "https://new-archive.example.com"
    for file in ("resources", "verifiers"):
        home.replace(f"registry/{file}.yaml", ARCHIVE, new)
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    after = broker.granted("data-bot", scope="archive:read", resource=new)["access_token"]

    receipt = broker.kill("resource", "archive").json()

    assert receipt["matches"] == [["resource", ARCHIVE], ["resource", new]]
    assert receipt["ended"]["tokens"] == 2
    assert not broker.active(before)
    assert not broker.active(after)
    assert broker.kill("resource", "no-such-thing").status_code == 404


def forget_the_agent(home: Home, broker: Broker) -> None:
    """Register it under another name, with another identity."""
    home.replace("registry/agents.yaml", AGENT, "  another-bot:\n")
    text = home.text("registry/agents.yaml").replace("subject: dispute-bot}", "subject: another-bot}", 1)
    home.write("registry/agents.yaml", text)
    for folder in ("permits", "gates", "nevers"):
        for file in (home.path / "policies" / folder).glob("*.cedar"):
            file.write_text(file.read_text().replace('Agent::"dispute-bot"', 'Agent::"another-bot"'))
    answer = broker.post("/v1/reload", {}, by="operator")
    assert answer.status_code == 200, answer.text
    assert "dispute-bot" not in {row["id"] for row in broker.get("/v1/agents", by="operator").json()}
    assert broker.token(resource=INVOICES).status_code == 401
