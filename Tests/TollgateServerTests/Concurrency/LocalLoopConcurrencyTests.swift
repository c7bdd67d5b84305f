// Local loops under many connections that come, ask and go as they please, while sessions drain:
// under the thread sanitizer, and with the books of connections right at the end.

import Glibc
import NIOCore
import Synchronization
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite("Concurrency of local loops", .serialized, .blocking)
struct LocalLoopConcurrencyTests {
  @Test func everyConnectionIsToldLostOnceWhoeverEndsIt() async throws {
    let rig = try await LocalRig(localLoops: 2, eventLoops: 2)
    let seed = SeededRandom.fromEnvironment("local loops").seed
    let asked = Atomic<Int>(0)
    let failures = Atomic<Int>(0)
    await LocalRig.threads(6) { thread in
      var random = SeededRandom(seed: seed &+ UInt64(thread))
      for _ in 0..<60 {
        do {
          asked.add(try Self.visit(rig, &random), ordering: .relaxed)
        } catch {
          failures.add(1, ordering: .relaxed)
        }
        rig.timePassed()
        _ = rig.metrics.exposition()
      }
    }
    #expect(failures.load(ordering: .relaxed) == 0)
    #expect(asked.load(ordering: .relaxed) > 0)
    try await eventually("no connection is open") {
      await Task.yield()
      return rig.metrics.connections.current == 0
    }
    try await rig.stop()
  }

  /// One connection's life; how many requests were answered.
  private static func visit(_ rig: LocalRig, _ random: inout SeededRandom) throws -> Int {
    let client = try LocalClient(rig.endpoint)
    if random.chance(0.1) { return 0 }
    try client.greet()
    var awaited = 0
    for number in 0..<UInt64(random.next() % 40) {
      let isLeft = random.chance(0.5)
      try client.send(LocalClient.consumeFrame(correlation: number + 2, isLeft: isLeft))
      awaited += 1
    }
    if random.chance(0.3) {
      try client.send(bytes: [0x54, 0x47, 1][...])
    }
    // Some leave without their answers.
    if random.chance(0.3) { return 0 }
    for _ in 0..<awaited { _ = try client.next(.decisions) }
    return awaited
  }

  @Test func aDrainEndsConnectionsThatAreAtWork() async throws {
    let rig = try await LocalRig(localLoops: 2, eventLoops: 2)
    let working = Atomic<Int>(0)
    let ended = Atomic<Int>(0)
    await LocalRig.threads(7) { thread in
      guard thread > 0 else {
        while working.load(ordering: .relaxed) < 6 { sched_yield() }
        return rig.drain()
      }
      do {
        let client = try LocalClient(rig.endpoint)
        try client.greet()
        working.add(1, ordering: .relaxed)
        for number in UInt64(2)... {
          try client.send(LocalClient.consumeFrame(correlation: number, isLeft: number % 3 == 0))
          let frame = try client.next()
          guard frame.header.opcode != .goAway else { break }
        }
        while !client.isEnded() {}
      } catch {}
      ended.add(1, ordering: .relaxed)
    }
    #expect(ended.load(ordering: .relaxed) == 6)
    try await eventually("no connection is open") {
      await Task.yield()
      return rig.metrics.connections.current == 0
    }
    try await rig.stop()
  }

  @Test func aStopEndsConnectionsThatAreAtWork() async throws {
    let rig = try await LocalRig(localLoops: 2, eventLoops: 2)
    var clients: [LocalClient] = []
    for _ in 0..<20 {
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      try client.send(LocalClient.consumeFrame(correlation: 2, isLeft: true))
      clients.append(client)
    }
    try await rig.stop()
    #expect(rig.metrics.connections.current == 0)
    for client in clients { while !client.isEnded() {} }
  }
}
