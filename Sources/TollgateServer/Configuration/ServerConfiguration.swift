// Everything a sidecar can be told, with its bounds. Read from one YAML file, then environment
// variables for secrets; unknown keys are rejected and all problems are reported at once with
// key, value and reason (DESIGN 9). deploy/tollgate.example.yaml is the commented reference; a
// test reads it.

import TollgateCore
import TollgateRedis
import TollgateWire

/// Where a service listens or is found: `unix:/path` or `host:port`.
enum ServiceAddress: Hashable, Sendable, CustomStringConvertible {
  case tcp(host: String, port: Int)
  case unix(path: String)

  init?(_ text: String) {
    if text.hasPrefix("unix:") {
      let path = String(text.dropFirst(5))
      guard !path.isEmpty, path.utf8.count <= 100 else { return nil }
      self = .unix(path: path)
      return
    }
    guard let colon = text.lastIndex(of: ":") else { return nil }
    let host = text[..<colon]
    guard !host.isEmpty, let port = Int(text[text.index(after: colon)...]), (0...65535) ~= port
    else { return nil }
    self = .tcp(host: String(host), port: port)
  }

  var description: String {
    switch self {
    case .tcp(let host, let port): "\(host):\(port)"
    case .unix(let path): "unix:\(path)"
    }
  }

  /// Servers bind loopback only.
  var isLocal: Bool {
    switch self {
    case .unix: true
    case .tcp(let host, _): host == "localhost" || host == "::1" || host.hasPrefix("127.")
    }
  }
}

package struct ServerConfiguration: Sendable {
  var deployment: Deployment
  /// Stable across restarts of one sidecar; in logs, `status`, shipper ownership.
  var sidecarID: String
  var listenUnix: String?
  var listenTCP: ServiceAddress?
  /// Mode bits of the Unix socket.
  var unixMode: UInt32 = 0o660
  var http: ServiceAddress?
  var eventLoops = 1
  /// Threads that carry client connections; 0: the event loops do.
  var localLoops = 1
  var checkToken: String?
  var adminToken: String?
  /// Admin credentials of their own for people and tools, so that the audit tells them apart.
  var namedAdmins: [(name: Name, secret: String)] = []
  /// Users who may use the Unix socket in role `check` without a credential; the server's own
  /// user always may.
  var peerUIDs: [UInt32] = []
  var redis: RedisLinkConfiguration
  /// nil: a deployment without a ledger, unmetered features only.
  var ledger: ServiceAddress?
  var ledgerToken: String?
  var limits = Limits()
  var dedupe = Dedupe()
  var outbox = Outbox()
  /// File in which what an open policy let through waits for Redis; nil: memory only. What is let
  /// through from leases is in a file beside it.
  var journal: String?
  var leases = Leases()
  var logLevel = "info"

  struct Limits: Sendable {
    var connectionsMax = 10_000
    var inFlightPerConnectionMax = 1024
    /// Records in flight in one event loop; above it, OVERLOADED.
    var inFlightMax = 16_384
    var frameBytesMax = 1 << 20
    var deadlineDefaultMilliseconds: Int64 = 250
    var deadlineMaxMilliseconds: Int64 = 30_000
    var idleMilliseconds: Int64 = 300_000
    var helloMilliseconds: Int64 = 5_000
    var drainMilliseconds: Int64 = 10_000
    /// An unanswered script call older than this opens the breaker.
    var redisSlowMilliseconds: Int64 = 100
    /// Two tables of half as many, which just fill what they are grown to.
    var accountsCachedMax = 196_608
    var retainedDeltasMax = 200_000
    /// Live reservations of one account.
    var holdsPerAccountMax = HoldBounds.perSubjectMax
    var fallback = FallbackQueue.Limits()
  }

  struct Dedupe: Sendable {
    var windowMilliseconds: Int64 = 3_600_000
    /// Bytes of operation records per bucket.
    var moneyBytesMax: Int64 = 64 << 20
    var volumeBytesMax: Int64 = 64 << 20
  }

  struct Outbox: Sendable {
    /// Entries per bucket at which every new admission is OUTBOX_FULL.
    var entriesMax: Int64 = 1_000_000
    /// Delivered entries kept for late readers.
    var tailEntries: Int64 = 1000
    var batchEntriesMax = 2000
  }

  /// Only features of scope `sidecar` are leased; where the catalog has none, nothing of this is.
  struct Leases: Sendable {
    /// Operations remembered, 32 bytes each (more than one item: 64); older ids are ID_TOO_OLD. A
    /// power of two.
    var operations = 1 << 20
    /// How long Redis keeps a lease of which nothing is heard.
    var ttlMilliseconds: Int64 = 10_000
    /// How old usage may be before it is settled.
    var tickMilliseconds: Int64 = 10
    /// Let through and not settled: at most what is lost with a sidecar without a journal. What
    /// would go beyond is decided by Redis. nil: half of `operations`.
    var unsettledUnits: Int64 = 1 << 24
    var unsettledOperations: Int64?

    /// Beside the journal.
    static let fileSuffix = ".leases"
  }

  /// What every script call brings along.
  var storeLimits: StoreLimits {
    var limits = StoreLimits()
    limits.dedupeWindowMilliseconds = dedupe.windowMilliseconds
    limits.moneyRecordBytesMax = dedupe.moneyBytesMax
    limits.volumeRecordBytesMax = dedupe.volumeBytesMax
    limits.outboxEntriesMax = outbox.entriesMax
    return limits
  }

  init(
    deployment: Deployment, sidecarID: String, redis: RedisLinkConfiguration
  ) {
    self.deployment = deployment
    self.sidecarID = sidecarID
    self.redis = redis
  }
}

extension ServerConfiguration {
  /// Reads a configuration document. `environment` supplies secrets that are better not in files:
  /// TOLLGATE_CHECK_TOKEN, TOLLGATE_ADMIN_TOKEN, TOLLGATE_REDIS_PASSWORD, TOLLGATE_LEDGER_TOKEN,
  /// and TOLLGATE_SIDECAR_ID. `readFile` reads the first line of a `*_file` key.
  static func read(
    _ document: Document, environment: [String: String],
    readFile: @escaping (String) -> String?
  ) -> Result<ServerConfiguration, InvalidDocument> {
    let problems = ProblemList()
    let root = DocumentNode(document, problems: problems)
    var reader = ConfigurationReader(
      problems: problems, environment: environment, readFile: readFile)
    let configuration = reader.configuration(root)
    guard problems.isEmpty, let configuration else {
      return .failure(InvalidDocument(problems: problems.report))
    }
    return .success(configuration)
  }
}

private struct ConfigurationReader {
  let problems: ProblemList
  let environment: [String: String]
  let readFile: (String) -> String?

  mutating func configuration(_ root: DocumentNode) -> ServerConfiguration? {
    guard
      let fields = root.object(
        [
          "deployment", "sidecar_id", "listen", "http", "event_loops", "local_loops", "credentials",
          "redis", "ledger", "limits", "dedupe", "outbox", "journal", "leases", "log_level",
        ], required: ["deployment", "listen", "redis", "ledger"])
    else { return nil }
    let deployment = fields["deployment"].flatMap { self.deployment($0) }
    let redis = fields["redis"].flatMap { self.redis($0) }
    let fallbackID = Name.unchecked("sidecar")
    var configuration = ServerConfiguration(
      deployment: deployment ?? Deployment(id: fallbackID, buckets: 1, mode: .dev),
      sidecarID: sidecarID(fields["sidecar_id"]) ?? "sidecar-1",
      redis: redis ?? RedisLinkConfiguration(endpoint: .unix(path: "")))
    listen(fields["listen"], into: &configuration)
    if let node = fields["http"] { configuration.http = address(node, local: true) }
    if let n = fields["event_loops"]?.integer(1...64) { configuration.eventLoops = Int(n) }
    if let n = fields["local_loops"]?.integer(0...64) { configuration.localLoops = Int(n) }
    credentials(fields["credentials"], into: &configuration)
    ledger(fields["ledger"], into: &configuration)
    limits(fields["limits"], into: &configuration)
    dedupeAndOutbox(fields, into: &configuration)
    leases(fields["leases"], into: &configuration)
    if let node = fields["journal"], let path = node.string(bytesMax: 4096) {
      if path.isEmpty {
        node.problem("must be a path; leave the key out to keep the fallback in memory only")
      } else {
        configuration.journal = path
      }
    }
    if let node = fields["log_level"], let level = node.string(bytesMax: 16) {
      let known = ["trace", "debug", "info", "notice", "warning", "error", "critical"]
      if known.contains(level) {
        configuration.logLevel = level
      } else {
        node.problem("must be one of \(known.joined(separator: ", "))")
      }
    }
    return deployment == nil || redis == nil ? nil : configuration
  }

  private func sidecarID(_ node: DocumentNode?) -> String? {
    let name = "TOLLGATE_SIDECAR_ID"
    guard let text = environment[name], !text.isEmpty else { return node?.name()?.text }
    return DocumentNode(.string(text), path: name, problems: problems).name()?.text
  }

  private func deployment(_ node: DocumentNode) -> Deployment? {
    guard let fields = node.object(["id", "buckets", "mode"], required: ["id", "buckets", "mode"])
    else { return nil }
    // Each is read whatever the others are, so that every problem is named at once.
    let id = fields["id"]?.name()
    let buckets = fields["buckets"]?.integer(1...Int64(Deployment.bucketsMax))
    let mode = fields["mode"]?.choice(DeploymentMode.self)
    guard let id, let buckets, let mode else { return nil }
    return Deployment(id: id, buckets: Int(buckets), mode: mode == .prod ? .prod : .dev)
  }

  private enum DeploymentMode: String, CaseIterable { case dev, prod }

  private func address(_ node: DocumentNode, local: Bool) -> ServiceAddress? {
    guard let text = node.string(bytesMax: 512) else { return nil }
    guard let address = ServiceAddress(text) else {
      node.problem("must be host:port or unix:/path")
      return nil
    }
    if local && !address.isLocal {
      node.problem("must be a loopback address: a sidecar is reached from its own host only")
      return nil
    }
    return address
  }

  private func listen(_ node: DocumentNode?, into configuration: inout ServerConfiguration) {
    guard let node, let fields = node.object(["unix", "tcp", "unix_mode"]) else { return }
    if let path = fields["unix"]?.string(bytesMax: 100) {
      if path.isEmpty { fields["unix"]?.problem("must be a path") }
      configuration.listenUnix = path
    }
    if let tcp = fields["tcp"], let address = address(tcp, local: true) {
      configuration.listenTCP = address
    }
    if let mode = fields["unix_mode"]?.string(bytesMax: 4) {
      if let bits = UInt32(mode, radix: 8), bits <= 0o777 {
        configuration.unixMode = bits
      } else {
        fields["unix_mode"]?.problem("must be octal mode bits in quotes, such as \"0660\"")
      }
    }
    if configuration.listenUnix == nil && configuration.listenTCP == nil {
      node.problem("needs unix or tcp")
    }
  }

  /// A credential of our own protocol, which a hello must be able to carry.
  private func token(
    _ fields: DocumentFields, _ key: String, environment name: String
  ) -> String? {
    secret(fields, key, environment: name, bytesMax: WireLimits.tokenBytesMax)
  }

  /// A secret given in the environment, in a file, or inline; in that order.
  private func secret(
    _ fields: DocumentFields, _ key: String, environment name: String, bytesMax: Int = 1024
  ) -> String? {
    func checked(_ value: String, _ path: String) -> String? {
      guard value.utf8.count <= bytesMax else {
        // Not its text: this is printed.
        problems.add(
          Problem(
            path: path, value: "(hidden)",
            reason: "has \(value.utf8.count) bytes; at most \(bytesMax) are allowed"))
        return nil
      }
      return value
    }
    if let value = environment[name], !value.isEmpty { return checked(value, name) }
    if let node = fields[key + "_file"], let path = node.string(bytesMax: 4096) {
      guard let value = readFile(path), !value.isEmpty else {
        node.problem("cannot be read, or is empty")
        return nil
      }
      return checked(value, node.path)
    }
    guard let node = fields[key] else { return nil }
    if case .string(let text) = node.value, checked(text, node.path) == nil { return nil }
    return node.string(bytesMax: bytesMax)
  }

  private func credentials(_ node: DocumentNode?, into configuration: inout ServerConfiguration) {
    let keys = ["check", "check_file", "admin", "admin_file", "admins", "peer_uids"]
    let place = node ?? DocumentNode(.object([]), path: "credentials", problems: problems)
    guard let fields = place.object(keys) else { return }
    configuration.checkToken = token(fields, "check", environment: "TOLLGATE_CHECK_TOKEN")
    configuration.adminToken = token(fields, "admin", environment: "TOLLGATE_ADMIN_TOKEN")
    if let uids = fields["peer_uids"]?.list(max: 64) {
      configuration.peerUIDs = uids.compactMap { $0.integer(0...4_294_967_295).map(UInt32.init) }
    }
    for (key, node) in fields["admins"]?.members(max: 64) ?? [] {
      let name = node.name(key)
      guard let inner = node.object(["token", "token_file"]) else { continue }
      guard let secret = token(inner, "token", environment: "") else {
        if inner["token_file"] == nil, inner["token"] == nil {
          node.problem("needs token or token_file")
        }
        continue
      }
      if let name { configuration.namedAdmins.append((name, secret)) }
    }
    let single = [configuration.adminToken, configuration.checkToken].compactMap { $0 }
    let secrets = configuration.namedAdmins.map(\.secret) + single
    if Set(secrets).count != secrets.count {
      place.problems.add(
        Problem(
          path: place.path, value: "(hidden)",
          reason: "check, admin and each of admins must be different secrets"))
    }
  }

  private func redis(_ node: DocumentNode) -> RedisLinkConfiguration? {
    let keys = ["address", "username", "password", "password_file", "connect_timeout_ms"]
    guard let fields = node.object(keys, required: ["address"]),
      let place = fields["address"], let address = address(place, local: false)
    else { return nil }
    let endpoint: RedisEndpoint =
      switch address {
      case .tcp(let host, let port): .tcp(host: host, port: port)
      case .unix(let path): .unix(path: path)
      }
    var configuration = RedisLinkConfiguration(endpoint: endpoint)
    if let password = secret(fields, "password", environment: "TOLLGATE_REDIS_PASSWORD") {
      configuration.credentials = RedisCredentials(
        username: fields["username"]?.string(bytesMax: 128), password: password)
    } else if let username = fields["username"] {
      username.problem("needs a password, password_file or TOLLGATE_REDIS_PASSWORD")
    }
    if let milliseconds = fields["connect_timeout_ms"]?.integer(10...60_000) {
      configuration.connectMax = milliseconds * 1_000_000
    }
    return configuration
  }

  private func ledger(_ node: DocumentNode?, into configuration: inout ServerConfiguration) {
    guard let node else { return }
    if case .string("none") = node.value { return }
    guard let fields = node.object(["address", "token", "token_file"], required: ["address"])
    else { return }
    if let place = fields["address"] { configuration.ledger = address(place, local: false) }
    configuration.ledgerToken = token(fields, "token", environment: "TOLLGATE_LEDGER_TOKEN")
  }

  private func limits(_ node: DocumentNode?, into configuration: inout ServerConfiguration) {
    let keys = [
      "connections", "in_flight_per_connection", "in_flight", "frame_bytes",
      "deadline_default_ms", "deadline_max_ms", "idle_ms", "hello_ms", "drain_ms",
      "redis_slow_ms", "accounts_cached", "retained_deltas", "holds_per_account",
      "fallback_operations", "fallback_refused", "fallback_journal_bytes",
    ]
    guard let node, let fields = node.object(keys) else { return }
    func set(_ key: String, _ range: ClosedRange<Int64>, _ apply: (Int64) -> Void) {
      if let value = fields[key]?.integer(range) { apply(value) }
    }
    var limits = configuration.limits
    set("connections", 1...1_000_000) { limits.connectionsMax = Int($0) }
    set("in_flight_per_connection", 1...65_536) { limits.inFlightPerConnectionMax = Int($0) }
    set("in_flight", 1...1_000_000) { limits.inFlightMax = Int($0) }
    set("frame_bytes", 4096...(16 << 20)) { limits.frameBytesMax = Int($0) }
    set("deadline_default_ms", 1...60_000) { limits.deadlineDefaultMilliseconds = $0 }
    set("deadline_max_ms", 1...600_000) { limits.deadlineMaxMilliseconds = $0 }
    set("idle_ms", 100...86_400_000) { limits.idleMilliseconds = $0 }
    set("hello_ms", 10...60_000) { limits.helloMilliseconds = $0 }
    set("drain_ms", 0...600_000) { limits.drainMilliseconds = $0 }
    set("redis_slow_ms", 1...60_000) { limits.redisSlowMilliseconds = $0 }
    set("accounts_cached", 100...10_000_000) { limits.accountsCachedMax = Int($0) }
    set("retained_deltas", 1000...10_000_000) { limits.retainedDeltasMax = Int($0) }
    set("holds_per_account", 1...100_000) { limits.holdsPerAccountMax = Int($0) }
    set("fallback_operations", 100...10_000_000) { limits.fallback.operationsMax = Int($0) }
    set("fallback_refused", 1...1_000_000) { limits.fallback.refusedMax = Int($0) }
    set("fallback_journal_bytes", 65_536...(1 << 40)) { limits.fallback.journalBytesMax = Int($0) }
    if limits.deadlineDefaultMilliseconds > limits.deadlineMaxMilliseconds {
      fields["deadline_default_ms"]?.problem("is above deadline_max_ms")
    }
    configuration.limits = limits
  }

  private func leases(_ node: DocumentNode?, into configuration: inout ServerConfiguration) {
    guard let node,
      let fields = node.object([
        "operations", "ttl_ms", "tick_ms", "unsettled_units", "unsettled_operations",
      ])
    else { return }
    if let place = fields["operations"], let n = place.integer(65_536...(1 << 26)) {
      if n & (n - 1) != 0 { place.problem("must be a power of two") }
      configuration.leases.operations = Int(n)
    }
    if let n = fields["ttl_ms"]?.integer(2_000...600_000) {
      configuration.leases.ttlMilliseconds = n
    }
    if let n = fields["tick_ms"]?.integer(1...1_000) { configuration.leases.tickMilliseconds = n }
    if let n = fields["unsettled_units"]?.integer(LeaseHub.unsettledLeast...(1 << 50)) {
      configuration.leases.unsettledUnits = n
    }
    if let place = fields["unsettled_operations"],
      let n = place.integer(LeaseHub.unsettledLeast...(1 << 26))
    {
      if n > configuration.leases.operations / 8 * 7 {
        place.problem("must be at most seven eighths of operations")
      }
      configuration.leases.unsettledOperations = n
    }
  }

  private func dedupeAndOutbox(
    _ fields: DocumentFields, into configuration: inout ServerConfiguration
  ) {
    if let dedupe = fields["dedupe"]?.object(["window_ms", "money_bytes", "volume_bytes"]) {
      if let n = dedupe["window_ms"]?.integer(8000...OperationSlice.windowMaxMilliseconds) {
        configuration.dedupe.windowMilliseconds = n
      }
      if let n = dedupe["money_bytes"]?.integer(4096...(1 << 40)) {
        configuration.dedupe.moneyBytesMax = n
      }
      if let n = dedupe["volume_bytes"]?.integer(4096...(1 << 40)) {
        configuration.dedupe.volumeBytesMax = n
      }
    }
    if let outbox = fields["outbox"]?.object(["entries", "tail", "batch"]) {
      if let n = outbox["entries"]?.integer(10...100_000_000) {
        configuration.outbox.entriesMax = n
      }
      if let n = outbox["tail"]?.integer(0...1_000_000) { configuration.outbox.tailEntries = n }
      if let n = outbox["batch"]?.integer(1...5000) {
        configuration.outbox.batchEntriesMax = Int(n)
      }
    }
  }
}

extension Name {
  /// For literals of this file only.
  fileprivate static func unchecked(_ text: StaticString) -> Name {
    guard let name = try? Name("\(text)") else { preconditionFailure("a literal that is no name") }
    return name
  }
}
