// A loop that is handed work without end still comes round to its sockets.

import Foundation
import Glibc
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct BreatherTests {
  private final class Reader: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let read: EventLoopPromise<Void>

    init(_ read: EventLoopPromise<Void>) { self.read = read }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) { read.succeed() }
  }

  /// Hands itself over again as soon as it is done, until told not to.
  private static func feed(_ bound: NIOLoopBound<Breather>, while goesOn: Flag) {
    bound.value.run {
      let end = NIODeadline.now() + .microseconds(100)
      while NIODeadline.now() < end {}
      guard goesOn.isSet else { return }
      bound.eventLoop.execute { feed(bound, while: goesOn) }
    }
  }

  private final class Flag: Sendable {
    private let value = NIOLockedValueBox(true)
    var isSet: Bool { value.withLockedValue { $0 } }
    func clear() { value.withLockedValue { $0 = false } }
  }

  @Test func aLoopThatIsFedWithoutEndReadsItsSockets() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop = group.next()
    var ends: [Int32] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    let input = ends[0]
    let read = loop.makePromise(of: Void.self)
    let channel = try await NIOPipeBootstrap(group: group)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Reader(read))
        }
      }
      .takingOwnershipOfDescriptor(input: input).get()
    let goesOn = Flag()
    let bound = try await loop.submit {
      NIOLoopBound(Breather(eventLoop: loop), eventLoop: loop)
    }.get()
    loop.execute { Self.feed(bound, while: goesOn) }
    try await Task.sleep(for: .milliseconds(50))
    #expect(unsafe write(ends[1], "x", 1) == 1)
    // From without: a timer of the loop's own would be served whatever becomes of its sockets.
    let guardian = Thread {
      Thread.sleep(forTimeInterval: 5)
      read.fail(ChannelError.connectTimeout(.seconds(5)))
      goesOn.clear()
    }
    guardian.start()
    await #expect(throws: Never.self) { try await read.futureResult.get() }
    goesOn.clear()
    try await channel.close()
    close(ends[1])
    try await group.shutdownGracefully()
  }

  @Test func workIsDoneInTheOrderInWhichItWasHandedOver() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop = group.next()
    let bound = try await loop.submit {
      NIOLoopBound(Breather(eventLoop: loop), eventLoop: loop)
    }.get()
    let done = NIOLockedValueBox<[Int]>([])
    for number in 0..<200 {
      loop.execute {
        bound.value.run {
          let end = NIODeadline.now() + .microseconds(50)
          while NIODeadline.now() < end {}
          done.withLockedValue { $0.append(number) }
        }
      }
    }
    let all = Array(0..<200)
    try eventually(within: .seconds(10), "all is done") { done.withLockedValue { $0 } == all }
    try await group.shutdownGracefully()
  }
}
