// The life of a call: accepted, sent, answered or refused, sent again where that is safe, settled
// by policy when nobody answers. Every path out of the table goes through `complete`.

internal import DequeModule
internal import TollgateWire

extension ClientMachine {
  /// Accepts a call. It completes exactly once, perhaps at once.
  mutating func submit(_ call: Call, _ now: Now) {
    precondition(calls[call.token] == nil, "a token is used once")
    statistics.requests += 1
    var call = call
    if call.ask.changes, doubtful.contains(call.ask.id) {
      call.mayBeApplied = true
      call.home = doubtful.home(of: call.ask.id)
      call.isOfSidecarScope = call.home != nil
    }
    calls[call.token] = call
    guard life == .running else { return giveUp(call, .notRunning, keeps: false) }
    do throws(WireError) {
      try call.ask.validate()
    } catch {
      return complete(call, .failure(.rejected(error.code, message: error.text)))
    }
    if case .consume(let record) = call.ask, let answer = book.answered(record, now.wall) {
      return complete(call, answer)
    }
    if call.deadline <= now.monotonic { return expire(call, now) }
    if isDown, appliesPolicies, call.ask.isDecision, home(of: call) == nil {
      return settleByPolicy(call, now)
    }
    queue.append(call.token)
    alarms.set(call.token, at: call.deadline)
  }

  /// The calling task was cancelled. The slot of what was sent stays, the caller goes.
  mutating func cancel(_ token: Token) {
    guard let call = calls[token] else { return }
    giveUp(call, .cancelled)
  }

  // MARK: out

  mutating func pumpCalls(_ id: ConnectionID, _ now: Now) {
    while let connection = connections[id], connection.hasRoom(settings.inFlightMax),
      let token = queue.popFirst()
    {
      guard let call = calls[token], call.phase == .queued else { continue }
      let remaining = call.deadline - now.monotonic
      guard remaining > 0 else {
        expire(call, now)
        continue
      }
      if let home = home(of: call), home.sidecar != connection.sidecar {
        park(call, at: home, now)
        continue
      }
      guard fits(call, connection) else { continue }
      let tokens = gather(from: call, for: connection)
      send(tokens, like: call, on: id, remaining: remaining)
    }
  }

  /// Over an errand: whoever waits for one sidecar came at different times.
  mutating func sendAlone(_ call: Call, on id: ConnectionID, _ now: Now) {
    let remaining = call.deadline - now.monotonic
    guard remaining > 0 else { return expire(call, now) }
    guard let connection = connections[id], fits(call, connection) else { return }
    send([call.token], like: call, on: id, remaining: remaining)
  }

  /// Completes a call that cannot be sent over this connection.
  private mutating func fits(_ call: Call, _ connection: Connection) -> Bool {
    guard connection.features.isSuperset(of: call.ask.opcode.feature) else {
      let text = "this sidecar does not serve reservations"
      complete(call, .failure(.rejected(.unknownOpcode, message: text)))
      return false
    }
    guard call.ask.frameBytes + Self.frameOverhead <= connection.frameBytesMax else {
      let text = "the record does not fit a frame of \(connection.frameBytesMax) bytes"
      complete(call, .failure(.rejected(.frameTooLarge, message: text)))
      return false
    }
    return true
  }

  /// Header, count and reserved bytes.
  static var frameOverhead: Int { FrameHeader.bytes + 4 }

  /// The call and those behind it that travel with it.
  private mutating func gather(from first: Call, for connection: Connection) -> [Token] {
    var tokens = [first.token]
    var bytes = Self.frameOverhead + first.ask.frameBytes
    let most = min(settings.recordsPerFrameMax, connection.recordsMax)
    while tokens.count < most, let next = queue.first {
      guard let call = calls[next], call.phase == .queued else {
        queue.removeFirst()
        continue
      }
      bytes += call.ask.frameBytes
      guard call.group == first.group, call.ask.opcode == first.ask.opcode,
        call.deadline == first.deadline, bytes <= connection.frameBytesMax,
        mayGo(call, over: connection)
      else { break }
      queue.removeFirst()
      tokens.append(next)
    }
    return tokens
  }

  private mutating func send(
    _ tokens: [Token], like first: Call, on id: ConnectionID, remaining: Int64
  ) {
    var asks: [Ask] = []
    asks.reserveCapacity(tokens.count)
    for token in tokens {
      guard let found = calls[token] else { continue }
      var call = connections[id].map { addressed(found, to: $0) } ?? found
      call.phase = .sent
      if call.sends > 0 { statistics.retries += 1 }
      call.sends += 1
      calls[token] = call
      asks.append(call.ask)
    }
    statistics.recordsSent += Int64(asks.count)
    connections[id]?.framesInFlight += 1
    effects.append(
      .send(
        id,
        Outgoing(
          opcode: first.ask.opcode, flags: first.ask.opcode == .post ? .clientFallback : [],
          deadlineMilliseconds: Self.headerDeadline(remaining), content: FrameRecords(asks),
          shipment: .calls(tokens))))
  }

  /// What the sidecar is told: a tenth less than is left, at most 10 ms less, for the way back.
  static func headerDeadline(_ remaining: Int64) -> UInt32 {
    let told = (remaining - min(remaining / 10, 10_000_000)) / 1_000_000
    return UInt32(clamping: min(max(1, told), Int64(WireLimits.deadlineMillisecondsMax)))
  }

  // MARK: answers

  mutating func answered(
    _ id: ConnectionID, _ shipment: Shipment, _ records: [DecisionRecord], _ now: Now
  ) {
    freeSlot(of: id)
    switch shipment {
    case .calls(let tokens):
      for (token, record) in zip(tokens, records) {
        switch record {
        case .decision(let decision): decided(token, decision, now)
        case .error(let code, let message): refused(token, code, message, now)
        }
      }
    case .posts, .cancels, .settles: owedAnswered(shipment, records, now)
    }
    finishDraining(id)
  }

  mutating func refused(
    _ id: ConnectionID, _ shipment: Shipment, _ error: ErrorReply, _ now: Now
  ) {
    freeSlot(of: id)
    switch shipment {
    case .calls(let tokens):
      for token in tokens { refused(token, error.code, error.message, now) }
    case .posts, .cancels, .settles:
      let all = [DecisionRecord](
        repeating: .error(error.code, message: error.message), count: shipment.recordCount)
      owedAnswered(shipment, all, now)
    }
    finishDraining(id)
  }

  private mutating func decided(_ token: Token, _ decision: Decision, _ now: Now) {
    guard let call = calls[token] else {
      statistics.lateAnswers += 1
      return
    }
    // A sidecar that cannot ask its store denies by policy without knowing of the earlier attempt,
    // which another incarnation of it may have applied. What it lets through it posts under the
    // id, so that stands.
    if call.mayBeApplied, !decision.isAllowed, decision.source == .policy {
      return refused(token, .unavailable, "\(decision.reason.name) by policy", now)
    }
    // A denial of what was used is no answer to it where it may yet be taken.
    if call.ask.tellsUse, Acknowledgement(settle: .decision(decision)) == .later {
      return refused(token, .unavailable, "answered \(decision.reason.name)", now)
    }
    complete(call, .success(decision))
  }

  private mutating func refused(
    _ token: Token, _ code: ErrorCode, _ message: String, _ now: Now
  ) {
    guard var call = calls[token] else {
      statistics.lateAnswers += 1
      return
    }
    if let next = successor(of: call.ask, after: code) { return goOn(call, as: next) }
    if case .settle(let record) = call.ask, record.isFinal, Verdict.isWithoutHold(code, record) {
      effects.append(.letGo(record))
    }
    let verdict = Verdict(code)
    if verdict == .unknown, call.ask.changes { call.mayBeApplied = true }
    calls[token] = call
    let pause = settings.retry.length(attempt: call.refusals, using: &random)
    let next = now.monotonic + pause
    if verdict == .final || next >= call.deadline || isTooOld(call, now) {
      if verdict != .final, call.ask.tellsUse, keep(call.ask) {
        return complete(call, .failure(.outcomeUnknown(call.ask.id)))
      }
      // An earlier attempt may have been applied, whatever was said of this one.
      if call.mayBeApplied, !Verdict.excludesEffect(code) {
        return complete(call, .failure(.outcomeUnknown(call.ask.id)))
      }
      return complete(call, .failure(.rejected(code, message: message)))
    }
    call.refusals += 1
    call.phase = .resting(until: next)
    calls[token] = call
    alarms.set(token, at: next)
  }

  /// What was used of a reservation that is not known any more is posted under the settle's id.
  /// Where that id turns out to stand for the settle, an attempt of it was applied after all, and
  /// its record has the answer.
  private func successor(of ask: Ask, after code: ErrorCode) -> Ask? {
    switch ask {
    case .settle(let record):
      Verdict.isWithoutHold(code, record) && !record.usesNothing
        ? .post(record.asPost, settles: record) : nil
    case .post(_, let settle): code == .idempotencyMismatch ? .settle(settle) : nil
    case .check, .consume, .reserve, .release, .extend, .refund: nil
    }
  }

  private mutating func goOn(_ call: Call, as ask: Ask) {
    var call = call
    call.ask = ask
    call.phase = .queued
    calls[call.token] = call
    queue.append(call.token)
  }

  /// Beyond the dedupe window a repeated operation could count twice.
  private func isTooOld(_ call: Call, _ now: Now) -> Bool {
    // What was used is told however old it is: the sidecar asks the ledger about such an id.
    call.mayBeApplied && !call.ask.tellsUse
      && now.wall - call.ask.id.time >= settings.dedupeWindow
  }

  /// The connection ended with these calls in flight: they go to the front of the queue.
  mutating func orphaned(_ tokens: [Token], _ now: Now) {
    for token in tokens.reversed() {
      guard var call = calls[token] else { continue }
      if call.ask.changes { call.mayBeApplied = true }
      call.phase = .queued
      calls[token] = call
      if isTooOld(call, now) {
        complete(call, .failure(.outcomeUnknown(call.ask.id)))
      } else {
        queue.prepend(token)
      }
    }
  }

  // MARK: nobody answers

  /// The deadline passed without an answer.
  mutating func expire(_ call: Call, _ now: Now) {
    if life == .running || life == .stopping, appliesPolicies, call.ask.isDecision,
      home(of: call) == nil
    {
      return settleByPolicy(call, now)
    }
    giveUp(call, .deadlinePassed(lastTrouble))
  }

  /// No sidecar can be reached: everything that waits is answered by policy.
  mutating func settleWaiting(_ now: Now) {
    guard appliesPolicies else { return }
    for token in calls.keys.sorted() {
      guard let call = calls[token], call.ask.isDecision, home(of: call) == nil else { continue }
      switch call.phase {
      case .queued, .resting: settleByPolicy(call, now)
      case .sent, .away: break
      }
    }
  }

  private mutating func settleByPolicy(_ call: Call, _ now: Now) {
    let mayBeApplied = call.mayBeApplied || call.phase == .sent
    switch call.ask {
    case .check(let record):
      complete(
        call, book.decide(record, consumes: false, mayBeApplied: mayBeApplied, now.wall))
    case .consume(let record):
      complete(call, book.decide(record, consumes: true, mayBeApplied: mayBeApplied, now.wall))
    case .reserve: complete(call, book.refuseToHold(mayBeApplied: mayBeApplied, now.wall))
    case .post, .settle, .release, .extend, .refund:
      preconditionFailure("no policy can say what has happened")
    }
  }

  /// Ends a call without an answer, saying what is known. What tells use is kept, unless the client
  /// does not run.
  mutating func giveUp(_ call: Call, _ reason: NotSentReason, keeps: Bool = true) {
    // Kept, it will be sent: a caller who told the same under another id would tell it twice.
    let isKept = keeps && keep(call.ask)
    if isKept || call.ask.changes && (call.mayBeApplied || call.phase == .sent) {
      complete(call, .failure(.outcomeUnknown(call.ask.id)))
    } else {
      complete(call, .failure(.notSent(reason)))
    }
  }

  // MARK: the one way out

  private mutating func complete(_ call: Call, _ answer: FallbackBook.Answer) {
    switch answer {
    case .decided(let decision): complete(call, .success(decision))
    case .unknown: complete(call, .failure(.outcomeUnknown(call.ask.id)))
    case .mismatch:
      let text = "the id was used with another subject or other items"
      complete(call, .failure(.rejected(.idempotencyMismatch, message: text)))
    }
  }

  private mutating func complete(_ call: Call, _ result: Result<Decision, TollgateError>) {
    precondition(calls.removeValue(forKey: call.token) != nil, "a call completes once")
    switch result {
    case .failure(.outcomeUnknown(let id)): doubtful.insert(id, home: home(of: call))
    case .success: if call.ask.changes { answered(call.ask) }
    case .failure(.rejected), .failure(.notSent): break
    }
    switch result {
    case .success(let decision):
      switch (decision.source == .clientFallback, decision.isAllowed) {
      case (false, true): statistics.allowed += 1
      case (false, false): statistics.denied += 1
      case (true, true): statistics.fallbackAllowed += 1
      case (true, false): statistics.fallbackDenied += 1
      }
    case .failure(.rejected): statistics.rejected += 1
    case .failure(.notSent): statistics.notSent += 1
    case .failure(.outcomeUnknown): statistics.outcomeUnknown += 1
    }
    effects.append(.complete(call.token, result))
  }

  /// A sidecar has said what became of the id: nothing is in doubt or owed of it.
  private mutating func answered(_ ask: Ask) {
    doubtful.remove(ask.id)
    guard ask.tellsUse else { return }
    book.settles.remove(ask.id)
    book.posts.remove(ask.id)
    unheld[ask.id] = nil
    if case .post(_, let settle) = ask, settle.isFinal { effects.append(.letGo(settle)) }
  }
}
