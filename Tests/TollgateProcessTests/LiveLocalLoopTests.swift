// The local loop in a running sidecar: clients cannot take its last descriptors, and both kinds
// of listeners, over it and over NIO alone, serve the same session.

import Foundation
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct LocalLoop {
    /// CPU time of a process, in clock ticks of a hundredth of a second.
    private static func ticks(_ pid: Int32) throws -> Int {
      let stat = try String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)
      let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
      return (Int(fields[11]) ?? 0) + (Int(fields[12]) ?? 0)
    }

    /// Without a descriptor the runtime traps (it looks into /proc now and then), so clients must
    /// never get the last ones.
    @Test func clientsLeaveDescriptorsToTheRest() throws {
      let directory = try TemporaryDirectory()
      let socket = directory.file("s")
      let redis = try RedisServerProcess()
      let config = try directory.write(
        "c.yaml",
        """
        deployment: {id: few, buckets: 2, mode: dev}
        listen: {unix: \(socket)}
        credentials: {check: \(Stack.checkToken)}
        redis: {address: "unix:\(redis.socketPath)"}
        ledger: none
        """)
      let sidecar = try ChildProcess(
        "sh",
        [
          "-c", "ulimit -n 100; exec \"$0\" serve --config \"$1\"",
          try ChildProcess.tollgateBinary(), config,
        ])
      try eventually("it serves") { (try? Socket.close(Socket.connect(.unix(socket)))) != nil }
      let good = try WireConnection(.unix(socket), token: Stack.checkToken)
      let before = try Self.ticks(sidecar.pid)
      var crowd: [Int32] = []
      for number in 1...300 {
        if let descriptor = try? Socket.connect(.unix(socket)) { crowd.append(descriptor) }
        var ping = ByteBuffer()
        ping.writeFrame(Ping(nonce: UInt64(number)), correlation: good.nextCorrelation())
        try good.send(ping)
        _ = try good.next(within: 5000)
        Thread.sleep(forTimeInterval: 0.005)
      }
      #expect(sidecar.isRunning)
      #expect(try Self.ticks(sidecar.pid) - before < 200)
      crowd.forEach { Socket.close($0) }
      try eventually("there is room again") {
        (try? WireConnection(.unix(socket), token: Stack.checkToken)) != nil
      }
      sidecar.signal(15)
      #expect(try sidecar.wait(within: .seconds(20)) == .exited(0))
      try redis.stop()
    }

    @Test(arguments: [0, 1, 2])
    func bothListenersServe(localLoops: Int) throws {
      let port = try freePort()
      let directory = try TemporaryDirectory()
      let socket = directory.file("s")
      let redis = try RedisServerProcess()
      let config = try directory.write(
        "c.yaml",
        """
        deployment: {id: both, buckets: 2, mode: dev}
        listen: {unix: \(socket), tcp: "127.0.0.1:\(port)"}
        local_loops: \(localLoops)
        credentials: {check: \(Stack.checkToken)}
        redis: {address: "unix:\(redis.socketPath)"}
        ledger: none
        """)
      let sidecar = try ChildProcess(
        try ChildProcess.tollgateBinary(), ["serve", "--config", config])
      let endpoints = [TestEndpoint.unix(socket), .tcp("127.0.0.1", port)]
      for endpoint in endpoints {
        try eventually("it serves") { (try? Socket.close(Socket.connect(endpoint))) != nil }
      }
      for endpoint in endpoints {
        let client = try WireConnection(endpoint, token: Stack.checkToken)
        #expect(client.welcome != nil)
        #expect(throws: WireFailure.self) { try WireConnection(endpoint, token: "another") }
      }
      // On the Unix socket the same user needs no credential; over TCP everybody does.
      #expect(try WireConnection(.unix(socket), token: "").welcome != nil)
      #expect(throws: WireFailure.self) {
        try WireConnection(.tcp("127.0.0.1", port), token: "")
      }
      let goodbye = try WireConnection(.unix(socket), token: Stack.checkToken)
      sidecar.signal(15)
      #expect(try goodbye.next(within: 5000).header.opcode == .goAway)
      #expect(try sidecar.wait(within: .seconds(20)) == .exited(0))
      try redis.stop()
    }
  }
}
