// The queue between the ledger's link and the healer: in order, and when it is full the link is
// given up, so that the next one says all of it anew.

import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite("Push queue", .blocking)
struct PushQueueTests {
  private let queue = PushQueue(streams: 5)

  private func epoch(_ number: Int64) throws -> LedgerPush {
    .epoch(EpochNotice(bucket: 1, epoch: number, opener: try Name("one")))
  }

  private func connected() throws -> LedgerPush {
    .connected(
      Linked(deployment: Deployment(id: try Name("t"), buckets: 4, mode: .dev), buckets: []))
  }

  private func taken() -> [String] {
    var words: [String] = []
    while let push = queue.take() {
      switch push {
      case .connected: words.append("connected")
      case .disconnected: words.append("disconnected")
      case .presentRequest(let request): words.append("present \(request.epoch)")
      case .epoch(let notice): words.append("epoch \(notice.epoch)")
      case .refused(let code, _): words.append("refused \(code.name)")
      }
    }
    return words
  }

  private func fill() throws {
    #expect(queue.put(try connected()))
    for number in 1..<Int64(queue.pushesMax) { #expect(queue.put(try epoch(number))) }
    #expect(queue.count == queue.pushesMax)
  }

  @Test func itHoldsRecoveriesOfEveryStream() {
    #expect(queue.pushesMax == 1024)
    #expect(PushQueue(streams: 4097).pushesMax == 8 * 4097)
  }

  @Test func whatFitsIsTakenInOrder() throws {
    #expect(queue.put(try connected()))
    #expect(queue.put(.presentRequest(PresentRequest(bucket: 1, epoch: 1, cursor: 0))))
    #expect(queue.put(try epoch(2)))
    #expect(queue.put(.disconnected))
    #expect(taken() == ["connected", "present 1", "epoch 2", "disconnected"])
  }

  /// The link is given up at once, not half heard: whatever it still says is void.
  @Test func aFullQueueGivesTheLinkUp() throws {
    try fill()
    #expect(!queue.put(try epoch(5000)))
    #expect(!queue.put(try epoch(5001)))
    #expect(queue.put(.disconnected))
    #expect(queue.put(try connected()))
    #expect(queue.put(try epoch(7)))
    #expect(taken() == ["disconnected", "disconnected", "connected", "epoch 7"])
  }

  /// A link that comes and goes while nobody looks: the last word stands, and it stays bounded.
  @Test func theWordOfALinkAlwaysHasRoom() throws {
    try fill()
    for _ in 0..<3 * queue.pushesMax {
      #expect(queue.put(.disconnected))
      #expect(queue.put(try connected()))
      #expect(queue.count <= queue.pushesMax)
    }
    #expect(taken().last == "connected")
    try fill()
    #expect(queue.put(.refused(.deploymentMismatch, "another")))
    #expect(taken() == ["disconnected", "refused DEPLOYMENT_MISMATCH"])
  }

  @Test func whoWaitsIsWoken() async throws {
    let queue = queue
    let waiting = Task { () -> Bool in
      for await _ in queue.signals where queue.take() != nil { return true }
      return false
    }
    #expect(queue.put(.disconnected))
    #expect(await waiting.value)
  }
}
