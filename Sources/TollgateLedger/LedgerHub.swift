// The meeting point of all links, on one event loop: it carries out what the session machines and
// the recovery machine decide. One loop is enough, because the work is in SQLite, behind the
// writer's queue and the readers' queue; and on one loop nothing here needs a lock.

internal import Dispatch
internal import Logging
internal import NIOCore
internal import TollgateCore
internal import TollgateWire

/// What the hub can ask of one connection. Called on the hub's event loop only.
protocol LedgerConnection: AnyObject {
  func send(_ frames: ByteBuffer)
  func end(_ error: ErrorReply, correlation: UInt64)
  /// A request's answer, unless nobody awaits it any more.
  func answer(_ correlation: UInt64, _ frames: ByteBuffer)
  func linkAccepted(_ frames: ByteBuffer)
  func linkRefused(_ error: ErrorReply, correlation: UInt64)
  /// Says goodbye and closes as soon as nothing is in flight.
  func drain(_ frames: ByteBuffer)
}

final class LedgerHub {
  /// Connections at a time, links and tools; one more is closed at once.
  static let connectionsMax = 1024

  private struct LiveLink {
    var connection: any LedgerConnection
    var sidecar: Name
    var incarnation: UInt64
  }

  let store: LedgerStore
  let token: String
  let silence: LedgerSilence
  private let writer: LedgerWriter
  private let reads: LedgerReads
  private let eventLoop: any EventLoop
  private let clock: LedgerClock
  private let logger: Logger
  private let readers = DispatchQueue(label: "tollgate.ledger.readers", attributes: .concurrent)
  private var nextID = 1
  private var connections: [Int: any LedgerConnection] = [:]
  private var links: [Int: LiveLink] = [:]
  private var machine: RecoveryMachine
  private var positions: [BucketPosition] = []
  private var timer: Scheduled<Void>?
  private var isDraining = false

  init(
    store: LedgerStore, writer: LedgerWriter, token: String, eventLoop: any EventLoop,
    clock: LedgerClock, silence: LedgerSilence, logger: Logger
  ) throws {
    self.silence = silence
    self.store = store
    self.writer = writer
    self.token = token
    self.eventLoop = eventLoop
    self.clock = clock
    self.logger = logger
    reads = LedgerReads(store: store)
    machine = RecoveryMachine(startedAt: clock.monotonic())
    if store.deployment != nil { positions = try store.positions() }
  }

  var connectionCount: Int { connections.count }

  // MARK: Connections

  /// The connection's number; nil: there are too many, or the ledger is going.
  func opened(_ connection: any LedgerConnection) -> Int? {
    guard !isDraining, connections.count < Self.connectionsMax else { return nil }
    let id = nextID
    nextID += 1
    connections[id] = connection
    return id
  }

  func closed(_ id: Int) {
    connections.removeValue(forKey: id)
    guard let link = links.removeValue(forKey: id) else { return }
    logger.notice("link ended", metadata: ["sidecar": "\(link.sidecar)"])
    carryOut(machine.unlinked(id))
  }

  func welcome(inFlightMax: UInt32) -> Welcome {
    Welcome(
      role: .ledger, features: [.reservations], deployment: store.deployment?.id ?? Self.unnamed,
      sidecar: Self.name,
      frameBytesMax: UInt32(WireLimits.frameBytesMax), inFlightMax: inFlightMax,
      defaultDeadlineMilliseconds: 10_000,
      maxDeadlineMilliseconds: WireLimits.deadlineMillisecondsMax, idleTimeoutMilliseconds: 0,
      time: clock.wall(), globalVersion: (try? store.globalVersion()) ?? 0, policies: [])
  }

  private static let name = constant("ledger")
  private static let unnamed = constant("unset")
  private static func constant(_ text: String) -> Name {
    do { return try Name(text) } catch { preconditionFailure("a constant name: \(error)") }
  }

  // MARK: Links

  func link(_ id: Int, _ link: Link, correlation: UInt64) {
    guard let connection = connections[id] else { return }
    do {
      try store.adopt(link.deployment, now: clock.wall())
      if positions.isEmpty { positions = try store.positions() }
    } catch {
      logger.error("a link was refused", metadata: ["error": "\(error)"])
      return connection.linkRefused(LedgerReads.reply(to: error), correlation: correlation)
    }
    if let (otherID, other) = links.first(where: { $0.value.sidecar == link.sidecar }) {
      // The same incarnation is the same process on a new connection: the old one is dead on its
      // side, even where no end of it has arrived here.
      guard link.incarnation >= other.incarnation else {
        return connection.linkRefused(
          ErrorReply(
            code: .conflict,
            message: "sidecar \(link.sidecar) is linked as incarnation \(other.incarnation)"),
          correlation: correlation)
      }
      other.connection.end(
        ErrorReply(code: .conflict, message: "a newer incarnation of \(link.sidecar) linked"),
        correlation: 0)
      closed(otherID)
    }
    links[id] = LiveLink(
      connection: connection, sidecar: link.sidecar, incarnation: link.incarnation)
    var frames = ByteBuffer()
    frames.writeFrame(
      Linked(
        deployment: link.deployment,
        buckets: positions.filter { $0.epoch > 0 }.map {
          .init(bucket: UInt32($0.bucket), epoch: $0.epoch, cursor: $0.cursor)
        }),
      correlation: correlation)
    connection.linkAccepted(frames)
    logger.notice("link opened", metadata: ["sidecar": "\(link.sidecar)"])
    carryOut(machine.linked(id, sidecar: link.sidecar))
  }

  // MARK: Requests

  func apply(_ id: Int, _ batch: DeltaBatch, correlation: UInt64) {
    let hub = NIOLoopBound(self, eventLoop: eventLoop)
    writer.submit(batch) { result in
      hub.execute { $0.applied(id, batch, correlation, result) }
    }
  }

  private func applied(
    _ id: Int, _ batch: DeltaBatch, _ correlation: UInt64,
    _ result: Result<BatchOutcome, LedgerError>
  ) {
    var frames = ByteBuffer()
    switch result {
    case .failure(let error):
      frames.writeFrame(LedgerReads.reply(to: error), correlation: correlation)
    case .success(let outcome):
      let bucket = Int(batch.bucket)
      if case .acknowledged(let cursor) = outcome.answer,
        positions[bucket].epoch == batch.epoch
      {
        positions[bucket].cursor = max(positions[bucket].cursor, cursor)
      }
      if outcome.parked > 0 {
        logger.error("deltas were parked", metadata: ["count": "\(outcome.parked)"])
      }
      if let reply = reply(to: batch, outcome) {
        frames.writeFrame(reply, correlation: correlation)
      } else if case .refused(let reason) = outcome.answer {
        frames.writeFrame(
          ErrorReply(code: .badRequest, message: reason), correlation: correlation)
      }
    }
    connections[id]?.answer(correlation, frames)
  }

  private func reply(to batch: DeltaBatch, _ outcome: BatchOutcome) -> BatchReply? {
    let current =
      positions.indices.contains(Int(batch.bucket))
      ? positions[Int(batch.bucket)].epoch : 0
    func reply(
      _ status: BatchReply.Status, epoch: Int64, cursor: Int64, last: Int64 = 0
    ) -> BatchReply {
      BatchReply(
        status: status, bucket: batch.bucket, epoch: epoch, cursor: cursor, lastSequence: last,
        duplicates: outcome.duplicates)
    }
    switch outcome.answer {
    case .acknowledged(let cursor): return reply(.ack, epoch: current, cursor: cursor)
    case .gap(let cursor): return reply(.gap, epoch: current, cursor: cursor)
    case .fenced(let epoch, let last):
      return reply(.fenced, epoch: epoch, cursor: last, last: last)
    case .forked(let cursor, let sequence):
      return reply(.forked, epoch: current, cursor: cursor, last: sequence)
    case .refused: return nil
    }
  }

  func read(_ id: Int, _ read: LedgerSessionMachine.Read, correlation: UInt64) {
    let hub = NIOLoopBound(self, eventLoop: eventLoop)
    readers.async { [reads] in
      let frames = reads.answer(read, correlation: correlation)
      hub.execute { $0.connections[id]?.answer(correlation, frames) }
    }
  }

  // MARK: Recovery

  func recover(_ id: Int, _ recover: Recover) {
    guard positions.indices.contains(Int(recover.bucket)) else {
      connections[id]?.end(
        ErrorReply(code: .badRequest, message: "bucket \(recover.bucket) of \(positions.count)"),
        correlation: 0)
      return
    }
    carryOut(
      machine.requested(
        by: id, recover, position: positions[Int(recover.bucket)], now: clock.monotonic()))
  }

  func present(_ id: Int, _ present: Present, isLast: Bool) {
    carryOut(machine.presented(by: id, present, isLast: isLast))
  }

  private func carryOut(_ actions: [RecoveryMachine.Action]) {
    for action in actions {
      switch action {
      case .ask(let links, let request):
        var frames = ByteBuffer()
        frames.writeFrame(request, correlation: 0)
        for link in links { connections[link]?.send(frames) }
      case .tell(let links, let notice):
        var frames = ByteBuffer()
        frames.writeFrame(notice, correlation: 0)
        for link in links { connections[link]?.send(frames) }
      case .drop(let link):
        logger.error("a link presented more than can be held")
        connections[link]?.end(
          ErrorReply(code: .overloaded, message: "more was presented than can be held"),
          correlation: 0)
        closed(link)
      case .close(let request):
        let hub = NIOLoopBound(self, eventLoop: eventLoop)
        writer.submit(request) { result in hub.execute { $0.epochClosed(request, result) } }
      }
    }
    schedule()
  }

  private func epochClosed(
    _ request: RecoveryRequest, _ result: Result<RecoveryOutcome, LedgerError>
  ) {
    let bucket = UInt32(request.bucket)
    switch result {
    case .failure(let error):
      logger.error("a recovery failed", metadata: ["bucket": "\(bucket)", "error": "\(error)"])
      machine.closeFailed(bucket: bucket)
    case .success(let outcome):
      positions[request.bucket].epoch = outcome.epoch
      if outcome.isNew { positions[request.bucket].cursor = 0 }
      if let behind = outcome.behind {
        logger.critical(
          "this ledger went backwards: restore the newest copy of its file, if there is one",
          metadata: [
            "bucket": "\(bucket)", "from": "\(request.epoch)/\(outcome.lastSequence)",
            "to": "\(behind.epoch)/\(behind.cursor)",
          ])
      }
      let lost = outcome.losses.reduce(0) { $0 + $1.count }
      if lost > 0 {
        logger.critical(
          "deltas were lost",
          metadata: [
            "bucket": "\(bucket)", "epoch": "\(request.epoch)", "count": "\(lost)",
            "ranges": "\(outcome.losses.prefix(10))",
          ])
      }
      logger.notice(
        "epoch issued", metadata: ["bucket": "\(bucket)", "epoch": "\(outcome.epoch)"])
      carryOut(machine.closed(bucket: bucket, outcome, now: clock.monotonic()))
    }
  }

  /// One timer for the earliest window.
  private func schedule() {
    timer?.cancel()
    timer = nil
    guard let deadline = machine.deadline else { return }
    let wait = max(0, deadline - clock.monotonic())
    let hub = NIOLoopBound(self, eventLoop: eventLoop)
    timer = eventLoop.scheduleTask(in: .nanoseconds(wait)) {
      let hub = hub.value
      hub.carryOut(hub.machine.timePassed(now: hub.clock.monotonic()))
    }
  }

  // MARK: The end

  /// Refuses new requests, says goodbye; every connection closes when its last answer is out.
  func drain(graceMilliseconds: UInt32) {
    isDraining = true
    timer?.cancel()
    var frames = ByteBuffer()
    frames.writeFrame(
      GoAway(
        code: .draining, graceMilliseconds: graceMilliseconds, message: "the ledger is stopping"),
      correlation: 0)
    for connection in connections.values { connection.drain(frames) }
  }
}

extension NIOLoopBound {
  /// Runs `body` on the loop; dropped where the loop is gone, and with it everything it held.
  fileprivate func execute(_ body: @escaping @Sendable (Value) -> Void) {
    eventLoop.execute { body(self.value) }
  }
}
