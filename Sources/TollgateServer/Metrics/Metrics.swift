// Counters, gauges and histograms, and their Prometheus text. Handles are resolved at start and
// label values come from closed enums, so that neither names nor memory grow with tenants
// (PITFALL 48). Each is one relaxed atomic: event loops count without a lock, the exporter reads
// whenever it is asked.

import Synchronization
import TollgateCore

final class Counter: Sendable {
  private let value = Atomic<Int64>(0)

  func add(_ amount: Int64 = 1) { value.wrappingAdd(amount, ordering: .relaxed) }
  var current: Int64 { value.load(ordering: .relaxed) }
}

final class Gauge: Sendable {
  private let value = Atomic<Int64>(0)

  func set(_ new: Int64) { value.store(new, ordering: .relaxed) }
  func add(_ amount: Int64) { value.wrappingAdd(amount, ordering: .relaxed) }
  var current: Int64 { value.load(ordering: .relaxed) }
}

/// Latencies in fixed buckets from 50 µs to 10 s.
final class LatencyHistogram: Sendable {
  /// Upper bounds in microseconds.
  static let bounds: [Int64] = [
    50, 100, 200, 300, 500, 750, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000, 100_000,
    250_000, 1_000_000, 10_000_000,
  ]
  private let counts: [Counter]
  private let sum = Counter()

  init() { counts = (0...Self.bounds.count).map { _ in Counter() } }

  func record(nanoseconds: Int64) {
    let microseconds = max(0, nanoseconds) / 1000
    var index = 0
    while index < Self.bounds.count, microseconds > Self.bounds[index] { index += 1 }
    counts[index].add()
    sum.add(microseconds)
  }

  var total: Int64 { counts.reduce(0) { $0 + $1.current } }

  func write(name: String, labels: String, into text: inout String) {
    var running: Int64 = 0
    let separator = labels.isEmpty ? "" : ","
    for (index, bound) in Self.bounds.enumerated() {
      running += counts[index].current
      text += "\(name)_bucket{\(labels)\(separator)le=\"\(Self.seconds(bound))\"} \(running)\n"
    }
    running += counts[Self.bounds.count].current
    text += "\(name)_bucket{\(labels)\(separator)le=\"+Inf\"} \(running)\n"
    let suffix = labels.isEmpty ? "" : "{\(labels)}"
    text += "\(name)_sum\(suffix) \(Self.seconds(sum.current))\n\(name)_count\(suffix) \(running)\n"
  }

  /// Microseconds as decimal seconds, without floating point.
  static func seconds(_ microseconds: Int64) -> String {
    let fraction = String(microseconds % 1_000_000)
    var text = "\(microseconds / 1_000_000)"
    let digits = String(repeating: "0", count: 6 - fraction.count) + fraction
    let trimmed = digits.reversed().drop { $0 == "0" }.reversed()
    if !trimmed.isEmpty { text += "." + String(trimmed) }
    return text
  }
}

struct LeaseMetrics: Sendable {
  let unsettledUnits = Gauge()
  let unsettledOperations = Gauge()
  let creditUnits = Gauge()
  let unsettledUnitsMax = Gauge()
  let unsettledOperationsMax = Gauge()
  let accounts = Gauge()
  let shapes = Gauge()
  let recovering = Gauge()
  let lateExchanges = Gauge()
  let reachMilliseconds = Gauge()
  let lateExchangesGivenUp = Counter()
  let exchanges = Counter()
  let settledUnits = Counter()
  let recalls = Counter()
}

/// Every metric of a sidecar. Names and meanings are listed in README's section on seeing.
struct Metrics: Sendable {
  /// Indexed by source, then by position of the reason in `Reason.allCases`.
  private let decisions: [[Counter]]
  private let errors: [Counter]
  private static let reasonIndex: [Int] = {
    var table = [Int](repeating: 0, count: 64)
    for (index, reason) in Reason.allCases.enumerated() { table[Int(reason.rawValue)] = index }
    return table
  }()

  let requestLatency = LatencyHistogram()
  let redisLatency = LatencyHistogram()
  let connections = Gauge()
  let inFlight = Gauge()
  let frames = Counter()
  let protocolErrors = Counter()
  let overloaded = Counter()
  let replayed = Counter()
  let retriedStale = Counter()
  let retriedPeriod = Counter()
  let rebuilds = Counter()
  let fences = Counter()
  let recoveries = Counter()
  let redisUp = Gauge()
  let redisReconnects = Counter()
  let breakerOpen = Gauge()
  let breakerTrips = Counter()
  let redisCommands = Counter()
  let redisOperations = Counter()
  let timeouts = Counter()
  let lateReplies = Counter()
  let ledgerUp = Gauge()
  let deltasDelivered = Counter()
  let duplicatesAbsorbed = Counter()
  let gaps = Counter()
  let forks = Counter()
  let outboxEntries = Gauge()
  let outboxLagMilliseconds = Gauge()
  let meteringLagMilliseconds = Gauge()
  let retainedDeltas = Gauge()
  let retainedDropped = Counter()
  let holdsExpired = Counter()
  let holdsBrought = Counter()
  let leasesEnded = Counter()
  let leases = LeaseMetrics()
  let lateDeltas = Gauge()
  let lateReposted = Counter()
  let latePosts = Counter()
  let corrections = Counter()
  let thresholds = Counter()
  let ledgerLost = Gauge()
  let ledgerLostAcknowledged = Gauge()
  let ledgerSetbacks = Gauge()
  let fallbackUnits = Counter()
  let fallbackPending = Gauge()
  let fallbackPosted = Counter()
  let fallbackExpired = Counter()
  let fallbackCancelled = Counter()
  let fallbackDeferred = Gauge()
  let fallbackRefused = Gauge()
  let fallbackRefusals = Counter()
  let fallbackRefusalsDropped = Counter()
  let journalBytes = Gauge()
  let journalDamaged = Counter()
  let configVersion = Gauge()
  let configRefreshes = Counter()
  let bucketsOwned = Gauge()
  let bucketsFenced = Gauge()

  init() {
    decisions = Source.allCases.map { _ in Reason.allCases.map { _ in Counter() } }
    errors = ErrorCode.allCases.map { _ in Counter() }
  }

  func decided(_ reason: Reason, _ source: Source) {
    decisions[Int(source.rawValue)][Self.reasonIndex[Int(reason.rawValue)]].add()
  }

  /// So many answers from leases, in the turn of a loop that gave them.
  func leased(allowed: Int, replayed: Int, denied: Int) {
    let lease = decisions[Int(Source.lease.rawValue)]
    lease[Self.reasonIndex[Int(Reason.allowed.rawValue)]].add(Int64(allowed + replayed))
    lease[Self.reasonIndex[Int(Reason.quotaExceeded.rawValue)]].add(Int64(denied))
    if replayed > 0 { self.replayed.add(Int64(replayed)) }
  }

  func failed(_ code: ErrorCode) { errors[Int(code.rawValue) - 1].add() }

  func decisionCount(_ reason: Reason) -> Int64 {
    decisions.reduce(0) { $0 + $1[Self.reasonIndex[Int(reason.rawValue)]].current }
  }

  /// The Prometheus text exposition format, version 0.0.4.
  func exposition() -> String {
    var text = ""
    text.reserveCapacity(16 * 1024)
    func head(_ name: String, _ kind: String, _ help: String) {
      text += "# HELP \(name) \(help)\n# TYPE \(name) \(kind)\n"
    }
    func counter(_ name: String, _ help: String, _ value: Counter) {
      head(name, "counter", help)
      text += "\(name) \(value.current)\n"
    }
    func gauge(_ name: String, _ help: String, _ value: Gauge) {
      head(name, "gauge", help)
      text += "\(name) \(value.current)\n"
    }
    head("tollgate_decisions_total", "counter", "Decisions by reason and source.")
    for source in Source.allCases {
      for (index, reason) in Reason.allCases.enumerated() {
        let count = decisions[Int(source.rawValue)][index].current
        guard count > 0 || source == .redis else { continue }
        text +=
          "tollgate_decisions_total{reason=\"\(reason.name)\",source=\"\(source.name)\"} \(count)\n"
      }
    }
    head("tollgate_errors_total", "counter", "Requests answered with an error, by code.")
    for code in ErrorCode.allCases {
      let count = errors[Int(code.rawValue) - 1].current
      text += "tollgate_errors_total{code=\"\(code.name)\"} \(count)\n"
    }
    head("tollgate_request_seconds", "histogram", "From a request's arrival to its answer.")
    requestLatency.write(name: "tollgate_request_seconds", labels: "", into: &text)
    head("tollgate_redis_seconds", "histogram", "From a script call's write to its reply.")
    redisLatency.write(name: "tollgate_redis_seconds", labels: "", into: &text)
    gauge("tollgate_connections", "Client connections open.", connections)
    gauge("tollgate_in_flight", "Records accepted and not yet answered.", inFlight)
    counter("tollgate_frames_total", "Frames received.", frames)
    counter(
      "tollgate_protocol_errors_total", "Connections ended for breaking the protocol.",
      protocolErrors)
    counter("tollgate_overloaded_total", "Records refused early as OVERLOADED.", overloaded)
    counter("tollgate_replayed_total", "Operations answered from their record.", replayed)
    counter("tollgate_stale_total", "Calls repeated because configuration was newer.", retriedStale)
    counter("tollgate_period_total", "Calls repeated because a period had ended.", retriedPeriod)
    counter("tollgate_rebuilds_total", "Accounts seeded from the ledger.", rebuilds)
    counter("tollgate_fences_total", "Script calls refused by the fence.", fences)
    counter(
      "tollgate_recoveries_total", "Buckets opened under a new epoch by this sidecar.",
      recoveries)
    gauge("tollgate_redis_up", "Redis connections ready.", redisUp)
    counter("tollgate_redis_reconnects_total", "Redis connections opened.", redisReconnects)
    gauge("tollgate_breaker_open", "Event loops whose breaker is open.", breakerOpen)
    counter("tollgate_breaker_trips_total", "Times a breaker opened.", breakerTrips)
    counter(
      "tollgate_redis_commands_total", "Script calls sent on the request path.",
      redisCommands)
    counter(
      "tollgate_redis_operations_total", "Operations sent in them.",
      redisOperations)
    counter(
      "tollgate_timeouts_total", "Operations whose deadline passed before Redis answered.",
      timeouts)
    counter(
      "tollgate_late_replies_total", "Redis replies after the operation's deadline.",
      lateReplies)
    gauge("tollgate_ledger_up", "1 while the ledger link is up.", ledgerUp)
    counter(
      "tollgate_deltas_delivered_total", "Deltas the ledger acknowledged to this shipper.",
      deltasDelivered)
    counter(
      "tollgate_duplicates_absorbed_total", "Deltas the ledger already knew; reversed once.",
      duplicatesAbsorbed)
    counter("tollgate_gaps_total", "GAP answers of the ledger.", gaps)
    counter("tollgate_forks_total", "FORKED answers of the ledger.", forks)
    gauge(
      "tollgate_outbox_entries", "Entries in owned buckets not yet acknowledged.",
      outboxEntries)
    gauge("tollgate_outbox_lag_milliseconds", "Age of the oldest of them.", outboxLagMilliseconds)
    gauge(
      "tollgate_metering_lag_milliseconds",
      "Age of the oldest unit this sidecar let through that the ledger has not posted.",
      meteringLagMilliseconds)
    gauge("tollgate_retained_deltas", "Deltas kept in memory until acknowledged.", retainedDeltas)
    counter(
      "tollgate_retained_dropped_total", "Retained deltas given up at the bound.",
      retainedDropped)
    counter(
      "tollgate_holds_expired_total", "Reservations that ended because their time had come.",
      holdsExpired)
    counter(
      "tollgate_holds_brought_total", "Reservations brought into a new epoch of their bucket.",
      holdsBrought)
    counter(
      "tollgate_leases_ended_total",
      "Leases of which nothing was heard in time, and doubts that are over.", leasesEnded)
    gauge(
      "tollgate_lease_unsettled_units",
      "Units let through from leases and not settled in Redis: what is lost with this process "
        + "where there is no journal, and with its host in any case.", leases.unsettledUnits)
    gauge(
      "tollgate_lease_unsettled_operations", "Operations that these units belong to.",
      leases.unsettledOperations)
    gauge(
      "tollgate_lease_credit_units",
      "Units of cancelled operations that Redis still counts: later ones of the like take them, or "
        + "they are given back.", leases.creditUnits)
    gauge(
      "tollgate_lease_unsettled_units_max",
      "What tollgate_lease_unsettled_units never exceeds, at any instant: beyond it Redis decides. "
        + "A sidecar without a journal that is killed loses no more.", leases.unsettledUnitsMax)
    gauge(
      "tollgate_lease_unsettled_operations_max",
      "What tollgate_lease_unsettled_operations never exceeds.", leases.unsettledOperationsMax)
    gauge("tollgate_lease_accounts", "Accounts of which something is leased.", leases.accounts)
    gauge(
      "tollgate_lease_reach_milliseconds",
      "How far back this sidecar remembers by its id what it let through, a day at most. Where "
        + "callers retry or POST later than that they are refused as ID_TOO_OLD: raise "
        + "leases.operations.", leases.reachMilliseconds)
    gauge("tollgate_lease_shapes", "Kinds of requests answered from leases.", leases.shapes)
    gauge(
      "tollgate_lease_recovering",
      "Accounts of an earlier incarnation whose units are not settled yet.", leases.recovering)
    gauge(
      "tollgate_lease_late_exchanges",
      "Batches that a lost Redis leaves to the ledger, and that it does not have yet.",
      leases.lateExchanges)
    counter(
      "tollgate_lease_late_exchanges_given_up_total",
      "Those that were not kept so long, as what they settle took the room of other operations.",
      leases.lateExchangesGivenUp)
    counter("tollgate_lease_exchanges_total", "Calls to Redis about leases.", leases.exchanges)
    counter("tollgate_lease_settled_units_total", "Units settled by them.", leases.settledUnits)
    counter("tollgate_lease_recalls_total", "Times others were asked to give back.", leases.recalls)
    gauge(
      "tollgate_late_deltas",
      "Those of them whose epoch was closed before the ledger was seen to have them.", lateDeltas)
    counter(
      "tollgate_thresholds_total", "Thresholds of limits noted as reached.", thresholds)
    counter("tollgate_late_reposted_total", "Deltas appended to the outbox anew.", lateReposted)
    counter(
      "tollgate_late_posts_total",
      "Posts older than the dedupe window, counted once by the ledger's word.", latePosts)
    counter(
      "tollgate_corrections_total", "Refunds and adjustments made by this sidecar.", corrections)
    counter(
      "tollgate_fallback_units_total", "Units let through by an open failure policy.",
      fallbackUnits)
    gauge(
      "tollgate_fallback_pending", "Operations let through and not yet posted.",
      fallbackPending)
    counter("tollgate_fallback_posted_total", "Operations posted afterwards.", fallbackPosted)
    counter(
      "tollgate_fallback_expired_total",
      "Posts given up, without a ledger, because the operation is older than the dedupe window.",
      fallbackExpired)
    counter(
      "tollgate_fallback_cancelled_total",
      "Operations let through and taken back by their callers.",
      fallbackCancelled)
    gauge(
      "tollgate_fallback_deferred",
      "Of the pending ones: the store answered, and they wait for what it needs.", fallbackDeferred)
    gauge(
      "tollgate_fallback_refused", "Operations let through whose post is refused for good, parked.",
      fallbackRefused)
    counter(
      "tollgate_fallback_refusals_total", "Operations parked since the start.", fallbackRefusals)
    counter(
      "tollgate_fallback_refusals_dropped_total",
      "Parked operations that made room for others: named in the log only.",
      fallbackRefusalsDropped)
    gauge("tollgate_fallback_journal_bytes", "Size of the journal.", journalBytes)
    counter(
      "tollgate_fallback_journal_damaged_total",
      "Lines of the journal that could not be read at the start.", journalDamaged)
    gauge(
      "tollgate_config_version", "Version of the global configuration in force.",
      configVersion)
    counter(
      "tollgate_config_refreshes_total", "Times the global configuration was read.",
      configRefreshes)
    gauge(
      "tollgate_ledger_lost_entries",
      "Entries the ledger closed as lost, of the whole deployment, as last heard.", ledgerLost)
    gauge(
      "tollgate_ledger_lost_acknowledged_entries",
      "Of the lost entries: those that somebody has acknowledged.", ledgerLostAcknowledged)
    gauge(
      "tollgate_ledger_setback_buckets",
      "Buckets in which the ledger stands behind what it acknowledged, or stood.", ledgerSetbacks)
    gauge("tollgate_buckets_owned", "Buckets whose outbox this sidecar ships.", bucketsOwned)
    gauge("tollgate_buckets_fenced", "Buckets waiting for recovery.", bucketsFenced)
    return text
  }
}

extension Metrics {
  func note(_ status: FallbackQueue.Status) {
    fallbackPending.set(Int64(status.pending))
    fallbackDeferred.set(Int64(status.deferred))
    fallbackRefused.set(Int64(status.refused))
    journalBytes.set(Int64(status.journalBytes))
  }
}
