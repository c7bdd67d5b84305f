// A change of configuration that was recorded in an epoch that is over and that the ledger never
// saw: appended anew under its own identity, and in force again where nothing newer stands.

package import TollgateCore

package struct RepostConfigCall: ScriptCall {
  package enum Outcome: Hashable, Sendable {
    case appended(sequence: Int64)
    /// It lies in this epoch's outbox, where an earlier call put it whose reply was lost.
    case alreadyThere(sequence: Int64)
    /// The account is not seeded in this epoch: seed it and call again.
    case unseeded
  }

  /// Which counter a change of scope `counter` moved, by the delta's own number.
  package struct Counter: Hashable, Sendable {
    package var subject: Subject
    package var feature: Name
    /// nil: a rate, which has no books and nothing to move again.
    package var window: Window?
    package var start: WallTime

    /// From the delta's `after`; nil where that names none.
    package init?(_ delta: ConfigDelta) {
      guard delta.scope == .counter, let document = try? Document(json: delta.after),
        case .string(let path)? = document["subject"], let subject = try? Subject(path),
        case .string(let text)? = document["feature"], let feature = try? Name(text)
      else { return nil }
      self.subject = subject
      self.feature = feature
      window = nil
      start = WallTime(milliseconds: 0)
      if case .string(let code)? = document["window"], let window = Window(code: code),
        case .integer(let start)? = document["start"]
      {
        self.window = window
        self.start = WallTime(milliseconds: start)
      }
    }
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  /// Its sequence is not used.
  package var entry: OutboxEntry
  package var delta: ConfigDelta
  package let counter: Counter?
  private let account: Subject?

  /// nil: the delta names no account, or no counter, that could be.
  package init?(keySpace: KeySpace, fence: Fence, entry: OutboxEntry, delta: ConfigDelta) {
    self.keySpace = keySpace
    self.fence = fence
    self.entry = entry
    self.delta = delta
    counter = Counter(delta)
    switch delta.scope {
    case .global:
      account = nil
      bucket = keySpace.map.control
    case .account, .counter:
      guard let subject = counter?.subject ?? (try? Subject(delta.key)) else { return nil }
      account = subject.account
      bucket = keySpace.bucket(of: subject)
    }
  }

  package var script: ScriptName { .repostConfig }

  package var keys: [String] {
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.takenBack(bucket),
      account.map { keySpace.subject(bucket, $0) } ?? keySpace.global,
    ]
    if let counter, counter.subject.depth > 1 {
      keys.append(keySpace.subject(bucket, counter.subject))
    }
    return keys
  }

  package var arguments: [RESPArgument] {
    var writer = MessagePackWriter()
    writer.append(fence.epoch)
    writer.append(Int64(entry.id.index))
    writer.append(entry.time.milliseconds)
    writer.append(entry.actual)
    writer.append(entry.charged)
    writer.append(entry.absorbed)
    writer.append(delta.scope == .global ? 0 : delta.scope == .account ? 1 : 2)
    writer.append(delta.version)
    writer.append(
      counter.flatMap { counter in
        counter.window.map { KeySpace.field(feature: counter.feature, window: $0) }
      } ?? "")
    writer.append(counter?.start.milliseconds ?? 0)
    return fence.arguments + [
      .bytes(writer.bytes), .bytes(entry.id.operation.bytes), .bytes(entry.body),
      .string(delta.scope == .counter ? "" : delta.after),
      .bytes(ChangeMemory(entries: [remembered]).bytes),
    ]
  }

  private var remembered: ChangeMemory.Entry {
    ChangeMemory.Entry(
      operation: entry.id.operation, fingerprint: delta.fingerprint,
      result: delta.scope == .counter ? -entry.actual : delta.version, time: entry.time)
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Outcome> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?: reply[1].number.map { .appended(sequence: $0) }
      case .replayed?: reply[1].number.map { .alreadyThere(sequence: $0) }
      case .rebuild?: .unseeded
      default: nil
      }
    }
  }
}
