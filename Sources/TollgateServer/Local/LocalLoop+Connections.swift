// What a local loop does with its connections: accept, read and split, write, close.

import Glibc
import NIOConcurrencyHelpers
import NIOCore
import Synchronization
import TollgateWire

extension LocalLoop {
  // MARK: - Opening

  func accept(_ index: Int) {
    guard index < listeners.count else { return }
    let listener = listeners[index]
    for _ in 0..<Self.acceptsMax {
      let descriptor = LocalSystem.accept(listener.descriptor)
      guard descriptor >= 0 else {
        switch -descriptor {
        case EMFILE, ENFILE, ENOBUFS, ENOMEM: return pauseAccepting()
        // One that was gone before it was taken says nothing about the next.
        case EINTR, ECONNABORTED, EPROTO, EPERM: continue
        default: return
        }
      }
      let peerUID = listener.isTCP ? nil : LocalSystem.peerUID(descriptor)
      if peers.count > 1 {
        nextPeer = (nextPeer + 1) % peers.count
        let peer = peers[nextPeer]
        if peer !== inbox {
          peer.put(.adopt(descriptor, peerUID: peerUID, isTCP: listener.isTCP))
          continue
        }
      }
      adopt(descriptor, peerUID: peerUID, isTCP: listener.isTCP)
    }
  }

  /// Without a free descriptor the listener stays ready, and would be reported without end.
  private func pauseAccepting() {
    acceptsAt = LocalSystem.bootNanoseconds() + Self.acceptPause
    watchListeners(false)
  }

  func acceptAgain() {
    acceptsAt = nil
    watchListeners(true)
  }

  private func watchListeners(_ on: Bool) {
    for (index, listener) in listeners.enumerated() {
      poller.watch(
        listener.descriptor, number: Self.listenerNumber + UInt64(index), readable: on,
        writable: false)
    }
  }

  func stopListening() {
    for listener in listeners {
      poller.remove(listener.descriptor)
      LocalSystem.close(listener.descriptor)
    }
    listeners = []
    acceptsAt = nil
  }

  func adopt(_ descriptor: Int32, peerUID: UInt32?, isTCP: Bool) {
    guard openCount < settings.connectionsMax else { return LocalSystem.close(descriptor) }
    let place = free.popLast() ?? connections.count
    if place == connections.count {
      connections.append(nil)
      taken.append(0)
    }
    let key = ConnectionKey(place: place, taken: taken[place])
    guard poller.add(descriptor, number: key.number) else {
      free.append(place)
      return LocalSystem.close(descriptor)
    }
    if isTCP { LocalSystem.setNoDelay(descriptor) }
    nextHome = (nextHome + 1) % homes.count
    let connection = LocalConnection(
      key: key, descriptor: descriptor,
      link: LocalLink(key: key, descriptor: descriptor, loop: inbox), home: nextHome)
    connections[place] = connection
    openCount += 1
    staged[nextHome].append(.opened(connection.link, peerUID: peerUID))
  }

  // MARK: - Reading

  func readable(_ connection: LocalConnection) {
    input.begin(connection.kept)
    let received = input.receive(from: connection.descriptor, max: Self.readBytesMax)
    guard received > 0 else {
      if received == -Int(EAGAIN) || received == -Int(EINTR) { return }
      return drop(connection)
    }
    split(connection)
  }

  /// What was read before it could be judged.
  func splitKept(_ connection: LocalConnection) {
    guard !connection.kept.isEmpty else { return watch(connection) }
    input.begin(connection.kept)
    split(connection)
  }

  /// Takes the frames off `input`. What is answered is answered, what is not goes to the
  /// conversation, and half a frame is kept.
  private func split(_ connection: LocalConnection) {
    let end = input.end
    let before = output.count
    let now = connection.isFast ? LocalSystem.bootNanoseconds() : 0
    var at = 0
    // Where the frame begins that the fast path was told of; `end`: none.
    var expected = end
    // What goes to the conversation: runs of frames, copied once.
    var run = 0..<0
    var forwarded: ByteBuffer?
    func forward(_ next: Range<Int>) {
      if run.upperBound == next.lowerBound {
        run = run.lowerBound..<next.upperBound
      } else {
        copy(run, into: &forwarded)
        run = next
      }
      at = next.upperBound
    }
    while at < end {
      if connection.passing > 0 {
        let part = min(connection.passing, end - at)
        connection.passing -= part
        forward(at..<at + part)
        continue
      }
      if !connection.pauses.isDisjoint(with: [.greeting, .closing]) { break }
      guard end - at >= FrameHeader.bytes else { break }
      guard let frame = input.frame(at: at, frameBytesMax: connection.frameBytesMax) else {
        // The conversation finds what is wrong with it, says so, and closes.
        connection.isFast = false
        connection.pauses.insert(.closing)
        forward(at..<at + FrameHeader.bytes)
        at = end
        break
      }
      if frame.bytes > end - at {
        guard frame.bytes > Self.wholeBytesMax else { break }
        noteFront(frame, connection)
        connection.passing = frame.bytes
        continue
      }
      if connection.isFast {
        let next = next(at + frame.bytes, connection)
        let wasNext = at == expected
        expected = next.isEmpty ? end : at + frame.bytes
        if answer(frame, at: at, now: now, wasNext: wasNext, next: next, connection) {
          at += frame.bytes
          continue
        }
      }
      noteFront(frame, connection)
      forward(at..<at + frame.bytes)
    }
    copy(run, into: &forwarded)
    keep(connection, at..<end)
    if let forwarded { handOver(forwarded, of: connection) }
    if output.count > before {
      connection.link.wasActive.store(true, ordering: .relaxed)
      answers.append((connection, before..<output.count))
      if output.count >= Self.outputBytesMax { flush() }
    }
    if !connection.isGone { watch(connection) }
  }

  /// The payload of the frame that begins there, if it is all there and of a kind that the fast
  /// path is asked for.
  @inline(__always)
  private func next(_ index: Int, _ connection: LocalConnection) -> Range<Int> {
    guard input.end - index > FrameHeader.bytes,
      let frame = input.frame(at: index, frameBytesMax: connection.frameBytesMax),
      frame.bytes <= input.end - index,
      frame.opcode == Opcode.consume.rawValue || frame.opcode == Opcode.check.rawValue
    else { return 0..<0 }
    return index + FrameHeader.bytes..<index + frame.bytes
  }

  /// Whether the fast path took the frame.
  @inline(__always)
  private func answer(
    _ frame: FrontFrame, at index: Int, now: Int64, wasNext: Bool, next: Range<Int>,
    _ connection: LocalConnection
  ) -> Bool {
    let opcode: Opcode
    switch frame.opcode {
    case Opcode.consume.rawValue: opcode = .consume
    case Opcode.check.rawValue: opcode = .check
    default: return false
    }
    let asked = unsafe FastFrame(
      opcode: opcode, correlation: frame.correlation,
      deadlineMilliseconds: frame.deadlineMilliseconds, features: connection.features, now: now,
      payload: input.bytes(index + FrameHeader.bytes..<index + frame.bytes), wasNext: wasNext,
      next: next.isEmpty ? nil : input.bytes(next))
    guard let fast, fast.answer(asked, into: output) else { return false }
    answered += 1
    return true
  }

  /// A frame that the conversation gets may change what may follow it.
  private func noteFront(_ frame: FrontFrame, _ connection: LocalConnection) {
    if !connection.hasGreeted {
      connection.hasGreeted = true
      connection.pauses.insert(.greeting)
    }
    if frame.opcode == Opcode.goAway.rawValue { connection.isFast = false }
  }

  private func copy(_ run: Range<Int>, into forwarded: inout ByteBuffer?) {
    guard !run.isEmpty else { return }
    if forwarded == nil { forwarded = ByteBufferAllocator().buffer(capacity: run.count) }
    unsafe _ = forwarded?.writeBytes(input.bytes(run))
  }

  private func keep(_ connection: LocalConnection, _ rest: Range<Int>) {
    if rest.isEmpty || connection.pauses.contains(.closing) {
      if !connection.kept.isEmpty { connection.kept = [] }
    } else {
      connection.kept = input.array(rest)
    }
  }

  private func handOver(_ bytes: ByteBuffer, of connection: LocalConnection) {
    if connection.link.handedOver(bytes.readableBytes) { connection.pauses.insert(.stalled) }
    staged[connection.home].append(.received(connection.link, bytes))
  }

  // MARK: - Writing

  /// The answers of this turn, which lie in `output`.
  func flush() {
    guard !answers.isEmpty else { return }
    for (connection, range) in answers where !connection.isGone {
      wrote(
        connection.link.outlet.withLockedValue { output.write(range, to: &$0) }, connection)
    }
    answers.removeAll(keepingCapacity: true)
    output.clear()
  }

  func writable(_ connection: LocalConnection) {
    wrote(connection.link.outlet.withLockedValue { $0.push() }, connection)
  }

  /// A conversation wrote.
  func noteUnsent(_ connection: LocalConnection) {
    wrote(connection.link.outlet.withLockedValue { $0.unsentBytes }, connection)
  }

  /// What an outlet said: how much it keeps. A peer that does not take its answers is not read.
  @inline(__always)
  private func wrote(_ unsent: Int?, _ connection: LocalConnection) {
    guard let unsent else { return drop(connection) }
    if unsent == 0, !connection.hasUnsent { return }
    connection.hasUnsent = unsent > 0
    if unsent == 0, connection.isClosed { return drop(connection) }
    if unsent > settings.unsentMax, !connection.pauses.contains(.unsent) {
      connection.pauses.insert(.unsent)
      connection.link.isWritable.store(false, ordering: .relaxed)
    } else if unsent < settings.unsentLow, connection.pauses.contains(.unsent) {
      connection.pauses.remove(.unsent)
      connection.link.isWritable.store(true, ordering: .relaxed)
      staged[connection.home].append(.becameWritable(connection.link))
    }
    watch(connection)
  }

  /// Tells epoll what is waited for, where that changed.
  func watch(_ connection: LocalConnection) {
    let reads = connection.pauses.isEmpty
    let writes = connection.hasUnsent
    guard reads != connection.isWatchedForReading || writes != connection.isWatchedForWriting else {
      return
    }
    connection.isWatchedForReading = reads
    connection.isWatchedForWriting = writes
    poller.watch(
      connection.descriptor, number: connection.key.number, readable: reads, writable: writes)
  }

  // MARK: - Closing

  /// The conversation is over: what was written leaves first, if the peer takes it in time.
  func close(_ connection: LocalConnection) {
    guard connection.link.outlet.withLockedValue({ $0.unsentBytes }) > 0 else {
      return drop(connection)
    }
    connection.hasUnsent = true
    connection.isFast = false
    connection.isClosed = true
    connection.pauses.insert(.closing)
    connection.kept = []
    lingering.append(
      (connection.key, LocalSystem.bootNanoseconds() + settings.lingerNanoseconds))
    watch(connection)
  }

  /// The only place where a connection's descriptor is closed and its conversation told.
  func drop(_ connection: LocalConnection) {
    let place = Int(connection.key.place)
    guard !connection.isGone else { return }
    connection.isGone = true
    connections[place] = nil
    taken[place] &+= 1
    free.append(place)
    openCount -= 1
    // Before it is closed: behind this nobody writes to a number that may soon be another's. epoll
    // forgets a descriptor as it is closed.
    connection.link.outlet.withLockedValue { $0.close() }
    LocalSystem.close(connection.descriptor)
    staged[connection.home].append(.lost(connection.link))
    if acceptsAt != nil { acceptAgain() }
  }
}
