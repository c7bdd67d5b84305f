// Paying back: POST what was let through, CANCEL what was denied after a send of unknown outcome,
// SETTLE what was used of a reservation and not answered while its caller waited. One frame of each
// kind is in flight at a time, so that a returning sidecar is not flooded and live calls keep their
// room.

internal import DequeModule
internal import TollgateWire

extension ClientMachine {
  mutating func adopt(
    _ posts: [Record], _ cancels: [Record], _ settles: [SettleRecord] = []
  ) {
    book.adopt(posts: posts, cancels: cancels, settles: settles)
  }

  mutating func pumpOwed(_ id: ConnectionID, _ now: Now) {
    pumpPosts(id, now)
    pumpCancels(id, now)
    pumpSettles(id, now)
  }

  /// How many records and bytes a frame of owed ones may have; nil where none may leave now.
  private func room(_ id: ConnectionID) -> (records: Int, bytes: Int)? {
    guard let connection = connections[id], connection.hasRoom(settings.inFlightMax) else {
      return nil
    }
    return (
      min(settings.recordsPerFrameMax, connection.recordsMax),
      connection.frameBytesMax - Self.frameOverhead
    )
  }

  private mutating func pumpPosts(_ id: ConnectionID, _ now: Now) {
    guard !book.posts.isEmpty, let room = room(id) else { return }
    lastShipment += 1
    let frame = book.posts.nextFrame(
      number: lastShipment, recordsMax: room.records, bytesMax: room.bytes, now: now.monotonic,
      timeout: settings.owedTimeout)
    let ids = frame.records.map(\.id)
    send(
      .operations(frame.records), resent: frame.resent, .post, .clientFallback,
      .posts(ids, number: lastShipment), on: id)
  }

  private mutating func pumpCancels(_ id: ConnectionID, _ now: Now) {
    guard !book.cancels.isEmpty, let room = room(id) else { return }
    lastShipment += 1
    let frame = book.cancels.nextFrame(
      number: lastShipment, recordsMax: room.records, bytesMax: room.bytes, now: now.monotonic,
      timeout: settings.owedTimeout)
    let ids = frame.records.map(\.id)
    send(
      .operations(frame.records), resent: frame.resent, .cancel, [],
      .cancels(ids, number: lastShipment), on: id)
  }

  /// To a sidecar that knows no reservations nothing of them is sent: another one may come.
  private mutating func pumpSettles(_ id: ConnectionID, _ now: Now) {
    guard !book.settles.isEmpty, connections[id]?.features.contains(.reservations) == true,
      let room = room(id)
    else { return }
    lastShipment += 1
    let frame = book.settles.nextFrame(
      number: lastShipment, recordsMax: room.records, bytesMax: room.bytes, now: now.monotonic,
      timeout: settings.owedTimeout)
    let ids = frame.records.map(\.id)
    send(
      .settles(frame.records), resent: frame.resent, .settle, [],
      .settles(ids, number: lastShipment), on: id)
  }

  private mutating func send(
    _ records: FrameRecords, resent: Int, _ opcode: Opcode, _ flags: FrameFlags,
    _ shipment: Shipment, on id: ConnectionID
  ) {
    guard shipment.recordCount > 0 else { return }
    connections[id]?.framesInFlight += 1
    statistics.recordsSent += Int64(shipment.recordCount)
    statistics.retries += Int64(resent)
    effects.append(
      .send(
        id,
        Outgoing(
          opcode: opcode, flags: flags,
          deadlineMilliseconds: Self.headerDeadline(settings.owedTimeout), content: records,
          shipment: shipment)))
  }

  /// What was used is told until it is answered, though its caller has gone. False for what is not
  /// use, and where there is no room to keep it.
  mutating func keep(_ ask: Ask) -> Bool {
    switch ask {
    case .settle(let record):
      guard book.settles.hasRoom || book.settles.record(record.id) != nil else { return false }
      book.settles.add(record)
    // Beyond its capacity: nothing else would be told of these units.
    case .post(let record, let settle):
      book.posts.add(record)
      if settle.isFinal { unheld[record.id] = settle }
    case .check, .consume, .reserve, .release, .extend, .refund: return false
    }
    return true
  }

  mutating func owedAnswered(_ shipment: Shipment, _ records: [DecisionRecord], _ now: Now) {
    switch shipment {
    case .calls: preconditionFailure("a call is not owed")
    case .posts(let ids, let number):
      for (id, record) in zip(ids, records) {
        let acknowledgement = Acknowledgement(post: record)
        guard let settled = book.posts.settle(id, acknowledgement) else { continue }
        let settle = unheld.removeValue(forKey: id)
        switch acknowledgement {
        case .done:
          statistics.posted += 1
          if let settle { effects.append(.letGo(settle)) }
        case .refused(let reason):
          statistics.postsRefused += 1
          effects.append(.refusedPost(settled, reason))
        case .later: break
        }
      }
      book.posts.finished(
        number: number, ids: ids, failed: false, now: now.monotonic, pause: settings.reconnect,
        using: &random)
      book.endOutageIfPosted()
    case .cancels(let ids, let number):
      for (id, record) in zip(ids, records)
      where book.cancels.settle(id, Acknowledgement(cancel: record)) != nil {
        statistics.cancelled += 1
      }
      book.cancels.finished(
        number: number, ids: ids, failed: false, now: now.monotonic, pause: settings.reconnect,
        using: &random)
    case .settles(let ids, let number):
      for (id, record) in zip(ids, records) { settleAnswered(id, record) }
      book.settles.finished(
        number: number, ids: ids, failed: false, now: now.monotonic, pause: settings.reconnect,
        using: &random)
    }
  }

  private mutating func settleAnswered(_ id: OperationID, _ answer: DecisionRecord) {
    if case .error(let code, _) = answer, let waiting = book.settles.record(id),
      Verdict.isWithoutHold(code, waiting)
    {
      book.settles.remove(id)
      if !waiting.usesNothing {
        book.posts.add(waiting.asPost)
        if waiting.isFinal { unheld[id] = waiting }
      } else if waiting.isFinal {
        effects.append(.letGo(waiting))
      }
      return
    }
    let acknowledgement = Acknowledgement(settle: answer)
    guard let record = book.settles.settle(id, acknowledgement) else { return }
    switch acknowledgement {
    case .done: statistics.settled += 1
    case .refused(let reason):
      statistics.settlesRefused += 1
      effects.append(.refusedSettle(record, reason))
    case .later: break
    }
  }

  mutating func wakeOwed(_ now: Now) {
    book.posts.wake(now.monotonic)
    book.cancels.wake(now.monotonic)
    book.settles.wake(now.monotonic)
  }

  /// The connection was gone before the shipment reached it: nothing of it was sent.
  mutating func undelivered(_ shipment: Shipment) {
    switch shipment {
    case .calls(let tokens):
      for token in tokens.reversed() where calls[token] != nil {
        calls[token]?.phase = .queued
        queue.prepend(token)
      }
    case .posts(_, let number): book.posts.lost(number: number)
    case .cancels(_, let number): book.cancels.lost(number: number)
    case .settles(_, let number): book.settles.lost(number: number)
    }
  }
}
