// The sidecar's small parts: deadlines, caches, configuration, metrics
// text. None needs a server.

import Foundation
import NIOCore
import NIOEmbedded
import Testing
import TollgateCore
import TollgateEngine
import TollgateRedis
import TollgateTesting

@testable import TollgateServer

private func request(deadline: NIODeadline, answer: @escaping (Outcome) -> Void = { _ in })
  throws -> Request
{
  var random = SystemRandomNumberGenerator()
  return Request(
    mode: .consume, id: OperationID(time: WallTime(milliseconds: 1), using: &random),
    subject: try Subject("acme"), items: [Item(feature: try Name("chat"), amount: 1)], bucket: 0,
    arrived: .uptimeNanoseconds(0), deadline: deadline, answer: answer)
}

private func milliseconds(_ n: Int64) -> NIODeadline { .uptimeNanoseconds(UInt64(n) * 1_000_000) }

@Suite("Deadline wheel", .blocking)
struct DeadlineWheelTests {
  /// Given 1010 ms, it is given up 5 ms early, within one tick, and not before.
  @Test func aRequestIsGivenUpALittleAheadOfItsDeadlineAndNotSooner() throws {
    var wheel = DeadlineWheel<Request>(now: milliseconds(1000))
    wheel.insert(try request(deadline: milliseconds(1010)))
    #expect(wheel.advance(to: milliseconds(1005)).isEmpty)
    #expect(wheel.advance(to: milliseconds(1006)).count == 1)
    #expect(wheel.count == 0)
  }

  /// Of 10 ms a tenth goes, not 5 ms: a short deadline keeps nine tenths of its time.
  @Test func aShortDeadlineIsCutByATenthAtMost() throws {
    var wheel = DeadlineWheel<Request>(now: milliseconds(0))
    wheel.insert(try request(deadline: milliseconds(10)))
    #expect(wheel.advance(to: milliseconds(9)).isEmpty)
    #expect(wheel.advance(to: milliseconds(10)).count == 1)
  }

  @Test func anAnsweredRequestIsLetGoSilently() throws {
    var wheel = DeadlineWheel<Request>(now: milliseconds(0))
    let answered = try request(deadline: milliseconds(5))
    wheel.insert(answered)
    answered.complete(.error(.unavailable, ""))
    #expect(wheel.advance(to: milliseconds(100)).isEmpty)
    #expect(wheel.count == 0)
  }

  @Test func aDeadlineBeyondTheWheelIsNotLost() throws {
    var wheel = DeadlineWheel<Request>(now: milliseconds(0))
    wheel.insert(try request(deadline: milliseconds(10_000)))
    for now in stride(from: Int64(100), through: 9_900, by: 100) {
      #expect(wheel.advance(to: milliseconds(now)).isEmpty)
    }
    #expect(wheel.advance(to: milliseconds(10_001)).count == 1)
  }

  @Test func aRequestIsAnsweredOnce() throws {
    var answers = 0
    let once = try request(deadline: milliseconds(5)) { _ in answers += 1 }
    #expect(once.complete(.error(.unavailable, "")))
    #expect(!once.complete(.error(.unavailable, "")))
    #expect(answers == 1)
  }
}

@Suite("Account cache", .blocking)
struct AccountCacheTests {
  @Test func itIsBounded() {
    var cache = AccountCache(capacity: 100)
    for n in 0..<10_000 { cache["a\(n)"] = AccountConfig(version: Int64(n)) }
    #expect(cache.count <= 100)
    #expect(cache["a9999"]?.version == 9999)
  }

  @Test func whatIsUsedStays() {
    var cache = AccountCache(capacity: 10)
    cache["kept"] = AccountConfig(version: 7)
    for n in 0..<1000 {
      cache["a\(n)"] = AccountConfig()
      #expect(cache["kept"]?.version == 7)
    }
  }

  @Test func forgettingAnEntryForgetsBothGenerations() {
    var cache = AccountCache(capacity: 4)
    cache["x"] = AccountConfig(version: 1)
    for n in 0..<2 { cache["a\(n)"] = AccountConfig() }
    cache["x"] = nil
    #expect(cache["x"] == nil)
  }
}

@Suite("Server configuration", .blocking)
struct ServerConfigurationTests {
  private let good = """
    deployment: {id: demo, buckets: 16, mode: dev}
    sidecar_id: one
    listen: {unix: /tmp/t.sock, tcp: "127.0.0.1:0"}
    credentials: {check: aaa, admin: bbb}
    redis: {address: "unix:/tmp/r.sock"}
    ledger: {address: "127.0.0.1:7500", token: ttt}
    """

  @Test func aGoodFileIsRead() throws {
    let configuration = try ServeEntry.configuration(yaml: good, environment: [:])
    #expect(configuration.deployment.buckets == 16)
    #expect(configuration.redis.endpoint == .unix(path: "/tmp/r.sock"))
    #expect(configuration.ledger == .tcp(host: "127.0.0.1", port: 7500))
    #expect(configuration.checkToken == "aaa")
  }

  @Test func theEnvironmentSuppliesSecrets() throws {
    let configuration = try ServeEntry.configuration(
      yaml: good, environment: ["TOLLGATE_ADMIN_TOKEN": "from-env"])
    #expect(configuration.adminToken == "from-env")
  }

  @Test func everyProblemIsNamedAtOnce() throws {
    let bad = """
      deployment: {id: "no spaces!", buckets: 0, mode: prd}
      listen: {tcp: "10.0.0.1:1"}
      redis: {address: nowhere}
      ledger: none
      limits: {in_flight: -1, drian_ms: 5}
      colour: red
      """
    do {
      _ = try ServeEntry.configuration(yaml: bad, environment: [:])
      Issue.record("a bad configuration was read")
    } catch let error as InvalidDocument {
      let text = error.description
      for path in [
        "deployment/id", "deployment/buckets", "deployment/mode", "listen/tcp", "redis/address",
        "limits/in_flight", "limits/drian_ms", "colour",
      ] {
        #expect(text.contains(path + ":"), "\(path) is not named in:\n\(text)")
      }
    }
  }

  @Test func aServerBindsLoopbackOnly() {
    #expect(ServiceAddress("0.0.0.0:80")?.isLocal == false)
    #expect(ServiceAddress("127.0.0.1:80")?.isLocal == true)
    #expect(ServiceAddress("unix:/a")?.isLocal == true)
    #expect(ServiceAddress("host:99999") == nil)
  }
}

@Suite("Metrics text", .blocking)
struct MetricsTests {
  @Test func countersAndHistogramsAreExposed() {
    let metrics = Metrics()
    metrics.decided(.allowed, .redis)
    metrics.decided(.quotaExceeded, .redis)
    metrics.requestLatency.record(nanoseconds: 150_000)
    let text = metrics.exposition()
    #expect(text.contains("tollgate_decisions_total{reason=\"ALLOWED\",source=\"redis\"} 1\n"))
    #expect(
      text.contains("tollgate_decisions_total{reason=\"QUOTA_EXCEEDED\",source=\"redis\"} 1\n"))
    #expect(text.contains("tollgate_request_seconds_bucket{le=\"0.0002\"} 1\n"))
    #expect(text.contains("tollgate_request_seconds_bucket{le=\"0.0001\"} 0\n"))
    #expect(text.contains("tollgate_request_seconds_count 1\n"))
  }

  /// PITFALL 48: label values come from closed enums, so the text has a fixed number of lines.
  @Test func pitfall48_seriesDoNotGrowWithTenants() {
    let metrics = Metrics()
    for reason in Reason.allCases { metrics.decided(reason, .redis) }
    let before = metrics.exposition().split(separator: "\n").count
    for _ in 0..<10_000 { metrics.decided(.allowed, .redis) }
    #expect(metrics.exposition().split(separator: "\n").count == before)
  }
}

@Suite("Posts of an earlier month", .blocking)
struct EarlierMonthTests {
  @Test func aMonthIsOverAtItsEndAndNotBefore() {
    let used = WallTime(milliseconds: 1_795_000_000_000)
    let end = Window.month.period(containing: used).end
    #expect(!Enforcer.isOver(monthOf: used, .utc, at: end + -1))
    #expect(Enforcer.isOver(monthOf: used, .utc, at: end))
  }

  /// The bill of an account in Kiritimati is closed fourteen hours before one in UTC.
  @Test func aMonthIsOverWhereTheAccountIs() throws {
    let used = WallTime(milliseconds: 1_795_000_000_000)
    let end = Window.month.period(containing: used).end
    let calendar = try AccountCalendar(
      [CalendarSetting(zone: "Pacific/Kiritimati")], SystemZones.book)
    let there = end + -14 * 3_600_000
    #expect(!Enforcer.isOver(monthOf: used, calendar, at: there + -1))
    #expect(Enforcer.isOver(monthOf: used, calendar, at: there))
  }
}
