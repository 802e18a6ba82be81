// prog.cc: what the compiler group's C++ row compiles
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <vector>

template <typename T> struct Tree {
    std::unique_ptr<Tree> l, r;
    T v;
    explicit Tree(T x) : v(x) {}
    void add(T x)
    {
        auto &side = x < v ? l : r;
        if (side)
            side->add(x);
        else
            side = std::make_unique<Tree>(x);
    }
    template <typename F> void walk(F f) const
    {
        if (l)
            l->walk(f);
        f(v);
        if (r)
            r->walk(f);
    }
};

int main()
{
    std::map<std::string, std::vector<int>> m;
    Tree<long> t(500);
    for (long i = 0; i < 3000; i++) {
        t.add(i * 7919 % 1009);
        m["k" + std::to_string(i % 37)].push_back(int(i));
    }
    long sum = 0;
    t.walk([&](long x) { sum = sum * 31 + x; });
    for (auto &[k, v] : m)
        sum += std::count_if(v.begin(), v.end(), [](int x) { return x % 3 == 0; });
    std::cout << sum << std::regex_replace("a1b22c333", std::regex("[0-9]+"), "#") << "\n";
}
