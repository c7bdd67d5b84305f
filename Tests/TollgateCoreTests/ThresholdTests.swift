// Which thresholds a reading of the counters reaches, and the identity of what is recorded.

import Testing
import TollgateCore
import TollgateTesting

@Suite(.blocking) struct ThresholdTests {
  private static func catalog() throws -> Catalog {
    try TollgateCoreTests.catalog(
      """
      {"levels": ["account", "member"],
       "features": {"f": {"metered": true}},
       "plans": {"p": {"f": [
         {"id": "q", "quota": 101, "per": "month", "thresholds": [100, 50]},
         {"id": "m", "quota": 10, "per": "day", "level": "member", "thresholds": [80]},
         {"id": "c", "credit": {"amount": 40, "every": "month"}, "overage": "allow",
          "thresholds": [95]},
         {"id": "s", "spend_cap": 20, "per": "month", "thresholds": [50]},
         {"id": "quiet", "quota": 1, "per": "day", "enforcement": "soft"}]}}}
      """)
  }

  private func readings(
    _ used: [Window: Int64], forgiven: Int64 = 0, amount: Int64? = nil
  ) throws -> [ThresholdReading] {
    let catalog = try Self.catalog()
    let subject = try Subject("acme/ann")
    var config = try account("p")
    if let amount { config.overrides = [try override("acme", "q", .amount(amount))] }
    let resolution = Resolution.resolve(
      subject: subject, items: [Item(feature: try name("f"), amount: 0)],
      global: global(catalog), account: config, now: noon, zones: .utcOnly)
    let counters = resolution.cells.map { cell in
      StoredCounter(
        value: CounterValue(start: cell.period.start, settled: used[cell.window] ?? 0),
        forgiven: cell.window == .month ? forgiven : 0)
    }
    let reading = LimitReading(
      subject: subject, resolution: resolution, counters: counters, arrivals: [], now: noon)
    return ThresholdReading.all(
      catalog.plans[try name("p")]?.entitlements[try name("f")] ?? [], subject: subject,
      resolution: resolution, reading: reading)
  }

  @Test func aPartIsReachedWithTheUnitThatMakesIt() throws {
    #expect(ThresholdReading.units(50, of: 101) == 51)
    #expect(ThresholdReading.units(100, of: Quantity.maximum) == Quantity.maximum)
    #expect(try readings([.month: 50]).isEmpty)
    let found = try readings([.month: 51])
    #expect(found.map(\.limit.text) == ["q"] && found.map(\.reached) == [[50]])
    #expect(try readings([.month: 101]).map(\.reached) == [[50, 100]])
  }

  @Test func aLimitOfAMemberIsTheMembers() throws {
    let found = try readings([.day: 8])
    #expect(found.map(\.limit.text) == ["m"])
    #expect(found.map(\.subject.path) == ["acme/ann"])
    #expect(found.first?.period == Window.day.period(containing: noon))
  }

  @Test func whatIsForgivenIsNotUsedAndARaiseTakesThemBack() throws {
    #expect(try readings([.month: 60], forgiven: 20).isEmpty)
    let after = try readings([.month: 80], forgiven: 20)
    #expect(after.map(\.used) == [60] && after.map(\.forgiven) == [20])
    #expect(try readings([.month: 60], amount: 200).isEmpty)
    // Lowered to nothing, it has no parts.
    #expect(try readings([.month: 60], amount: 0).isEmpty)
  }

  @Test func whatAPlanGivesAndACapHaveThemToo() throws {
    #expect(try readings([.grant(name("c")): 37]).isEmpty)
    let credit = try readings([.grant(name("c")): 38])
    #expect(credit.map(\.limit.text) == ["c"] && credit.map(\.amount) == [40])
    let cap = try readings([.overage(.month): 10])
    #expect(cap.map(\.limit.text) == ["s"] && cap.map(\.window) == [.overage(.month)])
  }

  @Test func theIdentityTellsWhatIsNotTheSame() throws {
    let reading = try #require(readings([.month: 101]).first)
    let body = reading.body(50)
    var ids = [body.id(forgiven: 0), body.id(forgiven: 1), reading.body(100).id(forgiven: 0)]
    var other = body
    other.amount += 1
    ids.append(other.id(forgiven: 0))
    other = body
    other.period.start = other.period.start + 1
    ids.append(other.id(forgiven: 0))
    other = body
    other.subject = try Subject("acme")
    ids.append(other.id(forgiven: 0))
    #expect(Set(ids).count == ids.count || body.subject == other.subject)
    #expect(Set(ids.prefix(5)).count == 5)
    // How much was used when somebody looked makes no other event.
    other = body
    other.used += 5
    #expect(other.id(forgiven: 0) == body.id(forgiven: 0))
    #expect(try ThresholdBody.decode(body.encode()) == body)
  }

  @Test(arguments: [
    "{}", "[]", #"{"subject":"a","feature":"f","limit":"l","start_ms":1,"end_ms":2,"amount":5}"#,
    #"{"subject":"a","feature":"f","limit":"l","start_ms":1,"end_ms":2,"threshold":101,"amount":5,"used":5}"#,
  ])
  func aDamagedBodyIsRefused(_ json: String) {
    #expect(throws: (any Error).self) { try ThresholdBody.decode(Array(json.utf8)) }
  }

  @Test func thresholdsAreSortedAndWrittenAndBelongToSomeKinds() throws {
    let catalog = try Self.catalog()
    let limits = catalog.plans[try name("p")]?.entitlements[try name("f")]
    #expect(limits?.first?.thresholds == [50, 100])
    #expect(try Catalog(document: Document(json: catalog.document.json())) == catalog)
    let found = try problems(
      """
      {"levels": ["a"], "features": {"f": {"metered": true}}, "plans": {"p": {"f": [
        {"id": "x", "rate": 5, "per": "day", "thresholds": [50]}]}}}
      """)
    #expect(found == ["plans/p/f/0/thresholds: belongs to a quota, a spend_cap, a credit only"])
  }
}
