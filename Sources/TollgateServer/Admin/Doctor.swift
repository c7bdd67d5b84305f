// Judges what was found out about the surroundings: a list of findings, each with what to do. A
// pure function, so that every judgement is tested without breaking a Redis for it.

import TollgateCore

package enum Doctor {
  /// Clocks further apart than this make ids look too old or too new.
  package static let clockOffsetMillisecondsMax: Int64 = 1000
  package static let roundTripMicrosecondsHigh: Int64 = 5000
  package static let redisMajorMin = 7

  package static func findings(_ facts: DoctorFacts, health: HealthReport) -> [Finding] {
    var findings: [Finding] = []
    findings += redis(facts)
    if facts.redisError.isEmpty {
      findings += persistence(facts)
      findings += memory(facts)
      findings += permissions(facts)
    }
    findings += deployment(facts)
    findings += ledger(facts)
    findings += clocks(facts)
    findings += buckets(health)
    findings += backlog(facts, health)
    findings += configuration(health)
    findings += zones(facts)
    findings += facts.fileProblems.map {
      Finding("files", .error, $0, fix: "set owner and mode as in deploy/ (0600 for secrets)")
    }
    return findings
  }

  private static func redis(_ facts: DoctorFacts) -> [Finding] {
    guard facts.redisError.isEmpty else {
      return [
        Finding(
          "redis", .error, "\(facts.redisAddress): \(facts.redisError)",
          fix: "start Redis or correct redis.address and the credential in the configuration; "
            + "until then every limit answers by its failure policy")
      ]
    }
    var findings = [Finding("redis", .ok, "answers at \(facts.redisAddress)")]
    if let version = facts.redisVersion {
      let major = version.split(separator: ".").first.flatMap { Int($0) } ?? 0
      findings.append(
        major >= redisMajorMin
          ? Finding("redis version", .ok, version)
          : Finding(
            "redis version", .error, version,
            fix: "upgrade to Redis \(redisMajorMin) or newer: the scripts need its flags"))
    }
    if facts.role == "slave" {
      findings.append(
        Finding(
          "redis role", .error, "connected to a replica",
          fix: "point redis.address at the primary"))
    }
    if let time = facts.redisRoundTripMicroseconds {
      findings.append(
        time <= roundTripMicrosecondsHigh
          ? Finding("redis round trip", .ok, "\(time) µs")
          : Finding(
            "redis round trip", .warning, "\(time) µs",
            fix: "look for slow commands (SLOWLOG), a fork for snapshots, or a far network"))
    }
    return findings
  }

  private static func persistence(_ facts: DoctorFacts) -> [Finding] {
    var findings: [Finding] = []
    if let appendOnly = facts.appendOnly {
      if !appendOnly {
        findings.append(
          Finding(
            "persistence", .warning, "appendonly no",
            fix: "set appendonly yes; without it a restart of Redis loses what the ledger has not "
              + "got and no sidecar retains"))
      } else if facts.appendFsync == "no" {
        findings.append(
          Finding(
            "persistence", .warning, "appendonly yes, appendfsync no",
            fix: "set appendfsync everysec, or always for money"))
      } else {
        findings.append(
          Finding("persistence", .ok, "appendonly yes, appendfsync \(facts.appendFsync ?? "?")"))
      }
    }
    if let error = facts.persistenceError {
      findings.append(
        Finding(
          "persistence state", .error, error,
          fix: "free disk space and see the Redis log; Redis refuses writes until it can save"))
    }
    return findings
  }

  private static func memory(_ facts: DoctorFacts) -> [Finding] {
    var findings: [Finding] = []
    if let policy = facts.maxmemoryPolicy {
      findings.append(
        policy == "noeviction"
          ? Finding("eviction", .ok, policy)
          : Finding(
            "eviction", .error, "maxmemory-policy \(policy)",
            fix: "set maxmemory-policy noeviction: an evicted counter admits everything"))
    }
    if let used = facts.usedMemory, let max = facts.maxmemory, max > 0 {
      let percent = percent(used, of: max)
      findings.append(
        percent < 80
          ? Finding("memory", .ok, "\(percent) % of maxmemory")
          : Finding(
            "memory", percent < 95 ? .warning : .error, "\(percent) % of maxmemory",
            fix: "raise maxmemory: when it is full Redis refuses every new decision"))
    }
    return findings
  }

  private static func permissions(_ facts: DoctorFacts) -> [Finding] {
    guard !facts.denied.isEmpty else {
      return [Finding("permissions", .ok, "every command the sidecar uses is allowed")]
    }
    return facts.denied.map {
      Finding(
        "permissions", .error, $0,
        fix: "give the Redis user the rules of deploy/redis/users.acl")
    }
  }

  private static func deployment(_ facts: DoctorFacts) -> [Finding] {
    guard !facts.deploymentDifferences.isEmpty else {
      return [Finding("deployment", .ok, "the same everywhere")]
    }
    return facts.deploymentDifferences.map {
      Finding(
        "deployment", .error, $0,
        fix: "a deployment's buckets, hash and mode are fixed: correct the configuration, or give "
          + "a new installation a new deployment id")
    }
  }

  private static func ledger(_ facts: DoctorFacts) -> [Finding] {
    guard let address = facts.ledgerAddress else {
      return [
        Finding(
          "ledger", .advice, "none: only unmetered features, a lost Redis starts afresh",
          fix: "configure ledger.address where usage is billed")
      ]
    }
    guard facts.ledgerError.isEmpty else {
      return [
        Finding(
          "ledger", .error, "\(address): \(facts.ledgerError)",
          fix: facts.ledgerError == "not connected"
            ? "start it (tollgate ledger) or correct ledger.address; until then the outbox holds "
              + "what is admitted, up to its ceiling"
            : "see its log and its disk; a newer copy of its file is put in place while it is "
              + "stopped. Until then limits hold by what Redis counts")
      ]
    }
    return [Finding("ledger", .ok, "answers at \(address)")]
  }

  private static func clocks(_ facts: DoctorFacts) -> [Finding] {
    let clocks = [
      ("redis clock", facts.redisClockOffset), ("ledger clock", facts.ledgerClockOffset),
    ]
    return clocks.compactMap { name, offset in
      guard let offset else { return nil }
      let text = "\(offset) ms from this sidecar"
      return abs(offset) <= clockOffsetMillisecondsMax
        ? Finding(name, .ok, text)
        : Finding(
          name, .warning, text,
          fix: "synchronize the clocks (NTP); ids more than 60 s ahead are refused")
    }
  }

  private static func buckets(_ health: HealthReport) -> [Finding] {
    let buckets = health.buckets
    guard buckets.ready < buckets.total else {
      return [Finding("buckets", .ok, "\(buckets.total) ready")]
    }
    let waiting = buckets.total - buckets.ready
    return [
      Finding(
        "buckets", .warning,
        "\(waiting) of \(buckets.total) not ready (\(buckets.fenced) fenced, "
          + "\(buckets.recovering) recovering)",
        fix: "they heal through the ledger: check that it answers; their limits answer by policy")
    ]
  }

  private static func backlog(_ facts: DoctorFacts, _ health: HealthReport) -> [Finding] {
    var findings: [Finding] = []
    if let largest = facts.outboxEntriesLargest, let max = facts.outboxEntriesMax, max > 0 {
      let percent = percent(largest, of: max)
      findings.append(
        percent < 50
          ? Finding("outbox", .ok, "\(largest) entries in the fullest bucket")
          : Finding(
            "outbox", percent < 80 ? .warning : .error,
            "\(largest) of \(max) entries in the fullest bucket",
            fix: "the ledger is away or slow: at the ceiling new admissions are OUTBOX_FULL"))
    }
    if let largest = facts.dedupeBytesLargest, let max = facts.dedupeBytesMax, max > 0 {
      let percent = percent(largest, of: max)
      findings.append(
        percent < 80
          ? Finding("dedupe table", .ok, "\(percent) % full")
          : Finding(
            "dedupe table", .warning, "\(percent) % full",
            fix: "raise its ceiling, or shorten the window: when full, money is denied"))
    }
    if health.delivery.retainedDropped > 0 {
      findings.append(
        Finding(
          "retained deltas", .warning,
          "\(health.delivery.retainedDropped) were given up at limits.retained_deltas",
          fix: "until the ledger has them they lie in Redis alone: bring the ledger back, and "
            + "raise the limit to what its outages need"))
    }
    let retained = health.delivery.retained
    if retained > 0, retained >= health.delivery.retainedMax / 2, health.delivery.retainedMax > 0 {
      findings.append(
        Finding(
          "retained deltas", .warning,
          "\(retained) of \(health.delivery.retainedMax) are kept in memory",
          fix: "the ledger is away or slow: beyond limits.retained_deltas Redis alone has the "
            + "rest; bring the ledger back, or raise the limit"))
    }
    if health.delivery.losses > 0 {
      let open = health.delivery.lossesOpen
      findings.append(
        open == 0
          ? Finding(
            "losses", .ok, "\(health.delivery.losses) entries were closed as lost; acknowledged")
          : Finding(
            "losses", .error,
            "\(health.delivery.losses) entries were closed as lost, \(open) not acknowledged",
            fix: "tollgate ledger losses list names each range; counters keep what Redis knows, "
              + "and tollgate reconcile shows what the bill lacks; then tollgate ledger losses "
              + "acknowledge"))
    }
    return findings
  }

  private static func configuration(_ health: HealthReport) -> [Finding] {
    var findings: [Finding] = []
    if health.configuration.globalVersion == 0 {
      findings.append(
        Finding(
          "catalog", .warning, "none is in force: every request is denied",
          fix: "tollgate catalog apply FILE"))
    } else {
      findings.append(
        Finding("catalog", .ok, "version \(health.configuration.catalogVersion) is in force"))
    }
    if health.configuration.heartbeatAgeMilliseconds > heartbeatMilliseconds {
      findings.append(
        Finding(
          "config heartbeat", .warning,
          "\(health.configuration.heartbeatAgeMilliseconds) ms since the last one",
          fix: "Redis does not answer the sidecar in time; changes of limits arrive late"))
    }
    return findings
  }

  /// Twice what a quiet sidecar rests between two.
  private static let heartbeatMilliseconds: Int64 = 3_000

  private static func zones(_ facts: DoctorFacts) -> [Finding] {
    guard !facts.zoneFolder.isEmpty else { return [] }
    guard !facts.zonesMissing.isEmpty else {
      return [Finding("zone files", .ok, "in \(facts.zoneFolder)")]
    }
    let found =
      facts.zonesMissing.count == facts.zonesSought
      ? "none in \(facts.zoneFolder)"
      : "\(facts.zonesMissing.joined(separator: ", ")) not in \(facts.zoneFolder)"
    return [
      Finding(
        "zone files", .warning, found,
        fix: "install tzdata beside this sidecar, or name the folder of its zone files in TZDIR; "
          + "until then it answers UNAVAILABLE or by failure policy for accounts in other zones "
          + "than UTC")
    ]
  }

  private static func percent(_ part: Int64, of whole: Int64) -> Int64 {
    Int64(clamping: Int128(part) * 100 / Int128(whole))
  }
}
