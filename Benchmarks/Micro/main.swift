// tollgate-micro NAME COUNT: does one small thing COUNT times and prints a sum over what came out,
// so that nothing of it can be left out. `.ci/gates` runs it under valgrind with N and with 2N: the
// difference, by N, is what the thing costs, without what starting the program does.
//
//   tollgate-micro             the names
//   tollgate-micro NAME        the nanoseconds of each, by the clock

import Glibc

let arguments = CommandLine.arguments
guard arguments.count >= 2 else {
  for name in Micro.all.keys.sorted() { print(name) }
  exit(0)
}
guard let make = Micro.all[arguments[1]] else {
  print("unknown: \(arguments[1])")
  exit(2)
}
let body = try make()
if arguments.count >= 3, let count = Int(arguments[2]), count > 0 {
  let sum = try body(count)
  print(sum)
  // What could not be done costs nothing, and would pass any gate.
  exit(sum > 0 ? 0 : 1)
} else {
  _ = try body(1_000)
  let start = ContinuousClock.now
  let sum = try body(100_000)
  let took = ContinuousClock.now - start
  print("\(arguments[1]) \(took / 100_000) each (\(sum))")
}
