// How a change is made, whatever it changes: read, edit, write if the version is still the one
// read, a bounded number of times. The operation id goes with every attempt, so that a repeated
// request finds its first effect (promise 4); a dry run takes the same path up to the write.

import TollgateCore

/// What an edit made of a configuration.
enum Edit<Configuration: Sendable>: Sendable {
  case change(Configuration, [String])
  case unchanged(String)
  case ignored(String)
}

enum AdminLimits {
  /// How often a change is tried again after somebody else's came in between.
  static let attemptsMax = 8
  /// Accounts that a dry run looks at.
  static let examinedMax = 20_000
  /// Milliseconds that a dry run spends on looking.
  static let examineMilliseconds: Int64 = 8_000
  /// Backend calls that one request has in flight.
  static let concurrencyMax = 32
}

extension AdminService {
  /// Checks the options and builds the record of who, what and why.
  func begin(
    _ options: ChangeOptions, action: String, request: some Encodable, caller: AdminCaller,
    reasonRequired: Bool = false
  ) throws(AdminFailure) -> ChangeRecord {
    var problems: [AdminFailure.Problem] = []
    func check(_ key: String, _ text: String, max: Int, required: Bool) {
      if required && text.isEmpty {
        problems.append(.init(path: "change/\(key)", value: "", reason: "is required"))
      }
      if text.utf8.count > max || text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7F }) {
        problems.append(
          .init(
            path: "change/\(key)", reason: "at most \(max) bytes and no control characters"))
      }
    }
    check("actor", options.actor, max: ChangeOptions.actorBytesMax, required: true)
    check("reason", options.reason, max: ChangeOptions.reasonBytesMax, required: reasonRequired)
    if options.waitMilliseconds < 0
      || options.waitMilliseconds > ChangeOptions.waitMillisecondsMax
    {
      problems.append(
        .init(
          path: "change/wait_ms", value: "\(options.waitMilliseconds)",
          reason: "must be from 0 to \(ChangeOptions.waitMillisecondsMax)"))
    }
    if options.wait == .ledger && !backend.hasLedger {
      problems.append(
        .init(path: "change/wait", value: "ledger", reason: "this deployment has no ledger"))
    }
    guard problems.isEmpty else {
      throw AdminFailure(
        .badRequest, "the request is not valid",
        fix: reasonRequired && options.reason.isEmpty ? "say why with --reason" : "",
        problems: problems)
    }
    var generator = SystemRandomNumberGenerator()
    return ChangeRecord(
      operation: options.operation ?? OperationID(time: clock(), using: &generator),
      fingerprint: try Self.fingerprint(action, request), action: action,
      actor: caller.proof.isEmpty ? options.actor : "\(options.actor) (\(caller.proof))",
      reason: options.reason)
  }

  /// Over what the request means, not over how it was asked: the options are left out. One half
  /// is the kind of change, the other its body, so that a mismatch can say which differs.
  package static func fingerprint(
    _ action: String, _ request: some Encodable
  ) throws(AdminFailure) -> UInt64 {
    let document: Document
    do {
      document = try Document(encoding: request)
    } catch {
      throw AdminFailure(.internalError, "the request cannot be fingerprinted: \(error)")
    }
    var hash = StableHash()
    if case .object(let members) = document {
      for member in members where member.key != "change" {
        hash.combine(member.key)
        hash.combine(member.value.json())
      }
    }
    return StableHash.of(action) << 32 | hash.value & 0xFFFF_FFFF
  }

  /// The answer to an id that is remembered; nil: it is new, and the write will say so.
  private func remembered(
    _ memory: ChangeMemory, bucket: Int, _ options: ChangeOptions, _ record: ChangeRecord
  ) async throws(AdminFailure) -> ChangeReply? {
    guard let entry = try Self.entry(of: record, in: memory) else { return nil }
    return try await reply(
      .replayed,
      Written(version: entry.result, bucket: bucket, position: nil, time: entry.time), options,
      record, changes: [])
  }

  /// Asked before the edit, because an edit that has nothing left to do would be answered
  /// `unchanged` where the first answer was `applied`; the script asks again.
  static func entry(
    of record: ChangeRecord, in memory: ChangeMemory
  ) throws(AdminFailure) -> ChangeMemory.Entry? {
    switch memory.verdict(on: record.operation, fingerprint: record.fingerprint) {
    case .unknown: return nil
    case .replayed(let entry): return entry
    case .mismatch(let difference): throw record.mismatch(difference)
    case .tooOld: throw record.tooOld
    }
  }

  func changeAccount(
    _ account: Subject, _ options: ChangeOptions, _ record: ChangeRecord,
    edit: (AccountConfig, GlobalConfig?) throws(AdminFailure) -> Edit<AccountConfig>,
    impact: (GlobalConfig?, AccountConfig, AccountConfig) async throws(AdminFailure) -> Impact
  ) async throws(AdminFailure) -> ChangeReply {
    for _ in 0..<AdminLimits.attemptsMax {
      let global = try await backend.globalConfig()
      let state = try await backend.account(account)
      if let reply = try await remembered(state.memory, bucket: state.bucket, options, record) {
        return reply
      }
      let before = state.config
      switch try edit(before, global) {
      case .unchanged(let detail):
        return ChangeReply(
          result: .unchanged, detail: detail, operation: record.operation,
          version: before.version)
      case .ignored(let detail):
        return ChangeReply(
          result: .ignored, detail: detail, operation: record.operation, version: before.version)
      case .change(var after, let changes):
        if options.dryRun {
          return ChangeReply(
            result: .dryRun, operation: record.operation, version: before.version,
            impact: try await impact(global, before, after), changes: changes)
        }
        after.version = before.version + 1
        let outcome = try await backend.writeAccount(
          account, after, before: before, expecting: before.version, change: record)
        if let reply = try await reply(outcome, options, record, changes: changes) { return reply }
      }
    }
    throw conflict("account \(account)")
  }

  func changeGlobal(
    _ options: ChangeOptions, _ record: ChangeRecord,
    edit: (GlobalConfig?) async throws(AdminFailure) -> Edit<GlobalConfig>,
    impact: (GlobalConfig?, GlobalConfig) async throws(AdminFailure) -> Impact
  ) async throws(AdminFailure) -> (reply: ChangeReply, config: GlobalConfig?) {
    for _ in 0..<AdminLimits.attemptsMax {
      let before = try await backend.globalConfig()
      let version = before?.version ?? 0
      let memory = try await backend.globalMemory()
      let control = backend.deployment.buckets
      if let reply = try await remembered(memory, bucket: control, options, record) {
        return (reply, before)
      }
      switch try await edit(before) {
      case .unchanged(let detail):
        let reply = ChangeReply(
          result: .unchanged, detail: detail, operation: record.operation, version: version)
        return (reply, before)
      case .ignored(let detail):
        let reply = ChangeReply(
          result: .ignored, detail: detail, operation: record.operation, version: version)
        return (reply, before)
      case .change(var after, let changes):
        if options.dryRun {
          let reply = ChangeReply(
            result: .dryRun, operation: record.operation, version: version,
            impact: try await impact(before, after), changes: changes)
          return (reply, after)
        }
        after.version = version + 1
        let outcome = try await backend.writeGlobal(
          after, before: before, expecting: version, change: record)
        // Before anybody waits for the ledger: until every bucket has the version, a sidecar that
        // has not heard of it yet decides by the one before.
        let problem = await announce(outcome)
        guard var reply = try await reply(outcome, options, record, changes: changes) else {
          continue
        }
        if let problem {
          // The change stands; sidecars hear of it by their own watch of the version.
          reply.detail += reply.detail.isEmpty ? "" : "; "
          reply.detail += "written, but not announced to every bucket yet (\(problem.message))"
        }
        if reply.result == .replayed { return (reply, try await backend.globalConfig()) }
        return (reply, after)
      }
    }
    throw conflict("the global configuration")
  }

  private func announce(_ outcome: WriteOutcome) async -> AdminFailure? {
    switch outcome {
    case .conflict, .crowded: return nil
    case .written(let written), .replayed(let written):
      do throws(AdminFailure) {
        try await backend.publishGlobal(version: written.version)
        return nil
      } catch { return error }
    }
  }

  /// nil: somebody else's change came in between; read again.
  func reply(
    _ outcome: WriteOutcome, _ options: ChangeOptions, _ record: ChangeRecord, changes: [String]
  ) async throws(AdminFailure) -> ChangeReply? {
    switch outcome {
    case .conflict: return nil
    case .crowded:
      throw AdminFailure(
        .overloaded, "the ledger is behind; nothing was changed", fix: "repeat it in a moment")
    case .written(let written):
      return try await reply(.applied, written, options, record, changes: changes)
    case .replayed(let written):
      return try await reply(.replayed, written, options, record, changes: [])
    }
  }

  func reply(
    _ result: ChangeReply.Result, _ written: Written, _ options: ChangeOptions,
    _ record: ChangeRecord, changes: [String]
  ) async throws(AdminFailure) -> ChangeReply {
    var reply = ChangeReply(
      result: result, operation: record.operation, version: written.version, changes: changes)
    if result == .replayed {
      reply.detail = "this operation was applied before, at \(CivilDate.text(written.time))"
    }
    guard options.wait == .ledger else { return reply }
    let arrived = try await backend.waitForLedger(
      bucket: written.bucket, position: written.position, milliseconds: options.waitMilliseconds)
    if arrived {
      reply.durable = .ledger
    } else {
      reply.detail +=
        "in Redis, but the ledger did not confirm within \(options.waitMilliseconds) ms"
    }
    return reply
  }

  private func conflict(_ what: String) -> AdminFailure {
    AdminFailure(
      .conflict,
      "\(what) kept changing; \(AdminLimits.attemptsMax) attempts were overtaken by others",
      fix: "try again; with the same --id it is still applied only once")
  }
}
