package main

func acrossSuite(s *Suite) {}
