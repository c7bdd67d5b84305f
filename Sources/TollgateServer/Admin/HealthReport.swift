// What a sidecar says of itself (`status`), and what it found out about its surroundings on
// request (`doctor`). Both are plain values: the first is filled from memory, the second by
// asking; judging them is Doctor's job.

/// The sidecar's own state, from memory.
package struct HealthReport: Hashable, Sendable, Codable {
  package struct Sidecar: Hashable, Sendable, Codable {
    package var id: String
    package var version: String
    package var uptimeMilliseconds: Int64
    /// Can answer by policy.
    package var ready: Bool
    package var draining: Bool
    package var connections: Int
    package var inFlight: Int

    package init(
      id: String, version: String, uptimeMilliseconds: Int64, ready: Bool, draining: Bool,
      connections: Int, inFlight: Int
    ) {
      self.id = id
      self.version = version
      self.uptimeMilliseconds = uptimeMilliseconds
      self.ready = ready
      self.draining = draining
      self.connections = connections
      self.inFlight = inFlight
    }
  }

  package struct Redis: Hashable, Sendable, Codable {
    package var address: String
    package var connected: Bool
    /// `closed` (healthy), `open` (not asked: down or slow), `half-open` (being tried).
    package var breaker: String
    package var runID: String?
    /// Last error, empty when connected.
    package var error: String

    package init(
      address: String, connected: Bool, breaker: String, runID: String?, error: String
    ) {
      self.address = address
      self.connected = connected
      self.breaker = breaker
      self.runID = runID
      self.error = error
    }
  }

  package struct Ledger: Hashable, Sendable, Codable {
    /// nil: the deployment runs without a ledger.
    package var address: String?
    package var connected: Bool
    package var error: String

    package init(address: String?, connected: Bool, error: String) {
      self.address = address
      self.connected = connected
      self.error = error
    }
  }

  package struct Configuration: Hashable, Sendable, Codable {
    package var globalVersion: Int64
    package var catalogVersion: Int64
    /// Since the last word of the configuration's version.
    package var heartbeatAgeMilliseconds: Int64

    package init(
      globalVersion: Int64, catalogVersion: Int64, heartbeatAgeMilliseconds: Int64
    ) {
      self.globalVersion = globalVersion
      self.catalogVersion = catalogVersion
      self.heartbeatAgeMilliseconds = heartbeatAgeMilliseconds
    }
  }

  package struct Buckets: Hashable, Sendable, Codable {
    package var total: Int
    package var ready: Int
    package var fenced: Int
    package var recovering: Int
    /// Buckets whose outbox this sidecar ships.
    package var owned: Int

    package init(total: Int, ready: Int, fenced: Int, recovering: Int, owned: Int) {
      self.total = total
      self.ready = ready
      self.fenced = fenced
      self.recovering = recovering
      self.owned = owned
    }
  }

  package struct Delivery: Hashable, Sendable, Codable {
    /// Entries in the outboxes this sidecar ships that the ledger has not acknowledged.
    package var undeliveredEntries: Int64
    /// Age of the oldest of them.
    package var oldestMilliseconds: Int64
    /// Deltas this sidecar retains until the ledger has them.
    package var retained: Int
    /// How many they may be, over all event loops; 0: not told.
    package var retainedMax: Int
    /// Of those, given up at their bound: should Redis lose its data before the ledger has them,
    /// nobody else holds them.
    package var retainedDropped: Int64
    package var duplicatesAbsorbed: Int64
    /// Entries the ledger closed as lost, as last heard.
    package var losses: Int64
    /// Of them: those that somebody has acknowledged (`tollgate ledger losses`).
    package var lossesAcknowledged: Int64

    package var lossesOpen: Int64 { max(0, losses - lossesAcknowledged) }

    package init(
      undeliveredEntries: Int64, oldestMilliseconds: Int64, retained: Int,
      retainedMax: Int = 0, retainedDropped: Int64 = 0, duplicatesAbsorbed: Int64, losses: Int64,
      lossesAcknowledged: Int64 = 0
    ) {
      self.undeliveredEntries = undeliveredEntries
      self.oldestMilliseconds = oldestMilliseconds
      self.retained = retained
      self.retainedMax = retainedMax
      self.retainedDropped = retainedDropped
      self.duplicatesAbsorbed = duplicatesAbsorbed
      self.losses = losses
      self.lossesAcknowledged = lossesAcknowledged
    }
  }

  package struct Fallback: Hashable, Sendable, Codable {
    /// Units let through by a failure policy, ever, and not posted yet.
    package var unitsAdmitted: Int64
    package var operationsToPost: Int
    /// Of them: the store answered, and they wait for what it needs.
    package var deferred: Int
    /// Refused for good and parked.
    package var refused: Int
    /// The latest of the parked ones.
    package var refusals: [Refusal]
    package var journalBytes: Int

    package struct Refusal: Hashable, Sendable, Codable {
      package var operation: String
      package var subject: String
      package var amounts: [String: Int64]
      package var reason: String
      package var atMilliseconds: Int64
    }

    package init(
      unitsAdmitted: Int64, operationsToPost: Int, deferred: Int = 0, refused: Int = 0,
      refusals: [Refusal] = [], journalBytes: Int = 0
    ) {
      self.unitsAdmitted = unitsAdmitted
      self.operationsToPost = operationsToPost
      self.deferred = deferred
      self.refused = refused
      self.refusals = refusals
      self.journalBytes = journalBytes
    }
  }

  /// What this sidecar holds in stock and answers from.
  package struct Leases: Hashable, Sendable, Codable {
    /// Its name in `lease.list`; another one with each start.
    package var lessee: String
    package var accounts: Int64
    /// Kinds of requests that are answered from memory.
    package var shapes: Int64
    /// Let through and not settled in Redis yet.
    package var unsettledUnits: Int64
    package var unsettledOperations: Int64
    /// Accounts of earlier incarnations that are being settled, and those incarnations as far as
    /// Redis does not know that they are over.
    package var recovering: Int64
    package var predecessors: [String]
    /// Let through and noted, but nobody can settle it: what holds it waits for its horizon.
    package var unresolvedUnits: Int64

    package init(
      lessee: String, accounts: Int64, shapes: Int64, unsettledUnits: Int64,
      unsettledOperations: Int64, recovering: Int64, predecessors: [String], unresolvedUnits: Int64
    ) {
      self.lessee = lessee
      self.accounts = accounts
      self.shapes = shapes
      self.unsettledUnits = unsettledUnits
      self.unsettledOperations = unsettledOperations
      self.recovering = recovering
      self.predecessors = predecessors
      self.unresolvedUnits = unresolvedUnits
    }
  }

  package var sidecar: Sidecar
  package var deployment: DeploymentReport
  package var redis: Redis
  package var ledger: Ledger
  package var configuration: Configuration
  package var buckets: Buckets
  package var delivery: Delivery
  package var fallback: Fallback
  package var leases: Leases?
  /// Decisions since the start, by reason name.
  package var decisions: [String: Int64]

  package init(
    sidecar: Sidecar, deployment: DeploymentReport, redis: Redis, ledger: Ledger,
    configuration: Configuration, buckets: Buckets, delivery: Delivery, fallback: Fallback,
    leases: Leases? = nil, decisions: [String: Int64]
  ) {
    self.leases = leases
    self.sidecar = sidecar
    self.deployment = deployment
    self.redis = redis
    self.ledger = ledger
    self.configuration = configuration
    self.buckets = buckets
    self.delivery = delivery
    self.fallback = fallback
    self.decisions = decisions
  }
}

package struct DeploymentReport: Hashable, Sendable, Codable {
  package var id: String
  package var buckets: Int
  package var hash: String
  package var keyVersion: Int
  package var mode: String

  package init(id: String, buckets: Int, hash: String, keyVersion: Int, mode: String) {
    self.id = id
    self.buckets = buckets
    self.hash = hash
    self.keyVersion = keyVersion
    self.mode = mode
  }
}

/// What was found out by asking. nil: could not be found out (see `redisError`, `denied`).
package struct DoctorFacts: Hashable, Sendable {
  /// Empty where Redis answered.
  package var redisError = ""
  package var redisAddress = ""
  package var redisVersion: String?
  package var redisMode: String?
  package var maxmemoryPolicy: String?
  package var maxmemory: Int64?
  package var usedMemory: Int64?
  package var appendOnly: Bool?
  package var appendFsync: String?
  /// Redis' `save` setting; empty: no snapshots.
  package var save: String?
  /// `aof_last_write_status` / `rdb_last_bgsave_status` where they are not `ok`.
  package var persistenceError: String?
  /// `master` or `slave`.
  package var role: String?
  package var connectedReplicas: Int?
  /// Redis clock − sidecar clock.
  package var redisClockOffset: Int64?
  package var redisRoundTripMicroseconds: Int64?
  /// Commands and keys the Redis user may not use, in Redis' own words.
  package var denied: [String] = []
  /// Each difference between our deployment record and the one in Redis or in the ledger.
  package var deploymentDifferences: [String] = []
  /// nil: no ledger is configured.
  package var ledgerAddress: String?
  package var ledgerError = ""
  /// Ledger clock − sidecar clock.
  package var ledgerClockOffset: Int64?
  /// The largest backlog of one bucket, and the ceilings it is held against.
  package var outboxEntriesLargest: Int64?
  package var outboxEntriesMax: Int64?
  /// Bytes of operation records in the fullest bucket, and their ceiling.
  package var dedupeBytesLargest: Int64?
  package var dedupeBytesMax: Int64?
  /// Files the sidecar reads or writes with permissions that are too wide or missing.
  package var fileProblems: [String] = []
  /// Where zone files are looked for; empty: nobody looked.
  package var zoneFolder = ""
  /// Well-known zones that are not there, and how many were looked for.
  package var zonesMissing: [String] = []
  package var zonesSought = 0

  package init() {}
}
