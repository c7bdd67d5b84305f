// `doctor`: asks Redis, the ledger and the file system how they are. Only gathers; what is wrong
// with a fact and what to do about it is Doctor's job.

import Glibc
import NIOCore
import TollgateCore
import TollgateRedis
import TollgateWire

struct DoctorProbe: Sendable {
  let sidecar: Sidecar

  func facts() async -> DoctorFacts {
    var facts = DoctorFacts()
    facts.redisAddress = "\(sidecar.configuration.redis.endpoint)"
    facts.outboxEntriesMax = sidecar.configuration.outbox.entriesMax
    facts.dedupeBytesMax = sidecar.configuration.dedupe.volumeBytesMax
    do throws(StoreFailure) {
      try await redis(&facts)
      try await buckets(&facts)
    } catch {
      facts.redisError = error.description
    }
    facts.ledgerAddress = sidecar.configuration.ledger.map { "\($0)" }
    facts.ledgerError = await ledgerError()
    facts.zoneFolder = SystemZones.folder
    facts.zonesSought = SystemZones.wellKnown.count
    facts.zonesMissing = SystemZones.wellKnown.filter { SystemZones.rules(named: $0) == nil }
    if let path = sidecar.configuration.listenUnix { files(path, &facts) }
    if let path = sidecar.configuration.journal { files(path, &facts) }
    return facts
  }

  /// Within what a person waits for `doctor`.
  private static let ledgerSeconds: Int64 = 3

  /// Asked, not believed: a connection to a process that hangs is still a connection.
  private func ledgerError() async -> String {
    guard let ledger = sidecar.ledger else { return "" }
    guard ledger.isUp else { return "not connected" }
    if let problem = sidecar.watch?.problem, !problem.isEmpty { return problem }
    do throws(LedgerFailure) {
      _ = try await ledger.pages(
        QueryRequest(.status, body: []), as: QueryReply.self,
        timeout: .seconds(Self.ledgerSeconds))
      return ""
    } catch {
      return "connected, but: \(error.description)"
    }
  }

  private func command(_ words: [RESPArgument]) async throws(StoreFailure) -> RESPReply {
    try await sidecar.store.reply { RESPWriter.write(words, to: &$0) }
  }

  private func redis(_ facts: inout DoctorFacts) async throws(StoreFailure) {
    let before = NIODeadline.now()
    let time = try await command(["TIME"])
    let now = sidecar.store.wallTime()
    facts.redisRoundTripMicroseconds = (NIODeadline.now() - before).nanoseconds / 1000
    if let parts = time.array, parts.count == 2, let seconds = parts[0].text.flatMap({ Int64($0) }),
      let micros = parts[1].text.flatMap({ Int64($0) })
    {
      facts.redisClockOffset = seconds * 1000 + micros / 1000 - now.milliseconds
    }
    let info = InfoFields(try await command(["INFO"]).text ?? "")
    facts.redisVersion = info["redis_version"]
    facts.redisMode = info["redis_mode"]
    facts.maxmemoryPolicy = info["maxmemory_policy"]
    facts.maxmemory = info["maxmemory"].flatMap { Int64($0) }
    facts.usedMemory = info["used_memory"].flatMap { Int64($0) }
    facts.appendOnly = info["aof_enabled"].map { $0 == "1" }
    facts.role = info["role"]
    facts.connectedReplicas = info["connected_slaves"].flatMap { Int($0) }
    let states = ["aof_last_write_status", "rdb_last_bgsave_status"].compactMap { field in
      info[field].flatMap { $0 == "ok" ? nil : "\(field): \($0)" }
    }
    if !states.isEmpty { facts.persistenceError = states.joined(separator: ", ") }
    for (setting, path) in [
      ("appendfsync", \DoctorFacts.appendFsync), ("save", \DoctorFacts.save),
    ] as [(String, WritableKeyPath<DoctorFacts, String?>)] {
      let reply = try await command(["CONFIG", "GET", .string(setting)])
      if let error = reply.error {
        facts.denied.append(error)
      } else {
        facts[keyPath: path] = reply.array?.last?.text
      }
    }
    // Scripts meet some commands in trouble only, and a refusal then is trouble on top. Tried on
    // keys that do not exist they change nothing.
    let none = "tg1:\(sidecar.configuration.deployment.id):{doctor}:none"
    for words in [
      ["RENAME", none, none + "2"], ["PERSIST", none], ["UNLINK", none], ["HDEL", none, "f"],
      ["XTRIM", none, "MINID", "1"], ["XDEL", none, "1-1"], ["ZREM", none, "m"],
      ["PEXPIREAT", none, "1"], ["XRANGE", none, "-", "+", "COUNT", "1"], ["ZSCORE", none, "m"],
    ] {
      let reply = try await command(words.map { .string($0) })
      if let error = reply.error, error.hasPrefix("NOPERM") { facts.denied.append(error) }
    }
    // Read only: a Redis whose memory is full refuses what may write, and it is the memory that
    // is to be told then.
    let differences = try await sidecar.store.deploymentDifferences(writing: false)
    facts.deploymentDifferences = differences.map(\.description)
  }

  private func buckets(_ facts: inout DoctorFacts) async throws(StoreFailure) {
    var entries: Int64 = 0
    var bytes: Int64 = 0
    for bucket in 0...sidecar.buckets.control {
      guard let meta = try await sidecar.store.meta(bucket: bucket) else { continue }
      entries = max(entries, (meta.fence.sequence ?? 0) - meta.acknowledged)
      bytes = max(bytes, meta.moneyRecordBytes, meta.volumeRecordBytes)
    }
    // Without a ledger nothing is ever acknowledged, and nothing waits.
    facts.outboxEntriesLargest = sidecar.ledger == nil ? 0 : entries
    facts.dedupeBytesLargest = bytes
  }

  private func files(_ path: String, _ facts: inout DoctorFacts) {
    var status = stat()
    guard unsafe lstat(path, &status) == 0 else {
      facts.fileProblems.append("\(path): does not exist or cannot be read")
      return
    }
    if status.st_mode & 0o002 != 0 { facts.fileProblems.append("\(path): writable by everybody") }
  }
}
